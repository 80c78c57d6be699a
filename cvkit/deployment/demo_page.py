"""The demo page itself, made and served by Gradio, which lets nothing in or out but pictures."""

from __future__ import annotations

import errno
import html
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from cvkit.deployment.demo import SCALE, Demo, bars, write_examples
from cvkit.errors import RunError, UserError
from cvkit.visualizers.cam_maps import Method

# An uploaded picture lies on the disk for an hour, and no longer than the page is served.
_EVERY, _KEPT = 60, 3600
_CSS = f"""
#picture img {{width: 100%; height: 100%; object-fit: contain}}
.bars {{list-style: none; margin: 0; padding: 0}}
.bars li {{display: flex; flex-wrap: wrap; justify-content: space-between; margin: 0 0 .6rem}}
.bars li:first-child {{font-size: 1.25rem; font-weight: 600}}
.bars i {{flex-basis: 100%; height: .4rem; border-radius: .2rem;
         background: var(--border-color-primary)}}
.bars i b {{display: block; height: 100%; border-radius: .2rem; background: var(--color-accent)}}
.maps {{display: flex; gap: 1rem}} .maps figure {{flex: 1; margin: 0}}
.maps img {{width: 100%; border-radius: .25rem}}
.scale {{display: flex; align-items: center; gap: .5rem; margin: .5rem 0}}
.maps ~ small {{font-size: .85rem}}
.scale i {{flex: 1; height: .5rem; background: linear-gradient(90deg, {SCALE})}}
#examples .grid-wrap {{min-height: 0}}
#examples .grid-container {{
    grid-template-columns: repeat(auto-fill, minmax(max(80px, 14%), 1fr))}}
#examples .caption-label {{left: 0; right: 0; max-width: none; padding: .15rem .3rem;
    white-space: normal; font-size: .75rem; line-height: 1.2}}
"""


def _gradio() -> Any:
    # Read when it is imported. Without it Gradio reports its use.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise RunError("the page needs Gradio, which is not installed",
                       hint='pip install "gradio>=6.31,<7"') from error
    return gradio


def _takes_files_as_they_are(image: Any) -> None:
    """Hand on the file that was uploaded.

    Gradio would turn and encode anew what it can read, stop at what it cannot, and fetch an
    address that a visitor sends in place of a file.
    """
    move = image.async_move_resource_to_block_cache

    async def move_file(path: Any) -> Any:
        if not os.path.isfile(path):
            raise ValueError(f"{path} is no file")
        return await move(path)

    image.async_move_resource_to_block_cache = move_file
    image.preprocess = lambda payload: payload and payload.path


def build_page(demo: Demo, examples: Sequence[tuple[str, str]] = ()) -> Any:
    """Return the page, Gradio's `Blocks`; `examples` are files with captions."""
    gr = _gradio()

    def told(error: UserError) -> str:
        text = html.escape(str(error))
        gr.Warning(text)
        return f'<p role="alert">{text}</p>'

    def maps(path: str | None, first: str, second: str, layer: str, method: Method) -> str:
        try:
            return demo.explain(path, [first, second], layer, method) if path and first else ""
        except UserError as error:
            return told(error)

    def look(path: str | None, layer: str = "", method: Method = "GradCAM") -> tuple[Any, ...]:
        try:
            found = demo.predict(path) if path else None
        except UserError as error:
            return told(error), None, None, ""
        if found is None:
            return "", None, None, ""
        top = [name for name, _ in found.top(2)]
        first, second = top[0], top[-1]
        return (bars(found), first, second,
                maps(path, first, second, layer, method) if demo.layers else "")

    # One picture at a time goes through the model; of what a visitor asks for meanwhile, the last.
    alone = {"concurrency_limit": 1, "concurrency_id": "model", "trigger_mode": "always_last",
             "api_visibility": "private", "show_progress": "minimal"}
    with gr.Blocks(title=demo.title, analytics_enabled=False,
                   delete_cache=(_EVERY, _KEPT)) as page:
        gr.HTML(f"<h1>{html.escape(demo.title)}</h1>" + "".join(
            f"<p>{html.escape(fact)}</p>" for fact in demo.facts))
        with gr.Row():
            with gr.Column(min_width=300):
                image = gr.Image(type="filepath", label="Picture", height=320, elem_id="picture",
                                 sources=["upload", "clipboard", "webcam"], buttons=[],
                                 webcam_options=gr.WebcamOptions(mirror=False))
                _takes_files_as_they_are(image)
                classes = gr.HTML(elem_id="classes")
            with gr.Column(min_width=300):
                if not demo.layers:
                    gr.HTML(f"<p>{html.escape(demo.why_no_map)}</p>")
                with gr.Column(visible=bool(demo.layers)):
                    with gr.Row():
                        first, second = (
                            gr.Dropdown(list(demo.predictor.classes), label=label, min_width=130,
                                        value=None) for label in ("Why this class", "Why that one"))
                    found = gr.HTML(elem_id="maps")
                    with gr.Row():
                        layer = gr.Dropdown(demo.layers, label="Layer", min_width=130,
                                            value=demo.layer or None)
                        method = gr.Dropdown(list(get_args(Method)), label="Method", min_width=130)
        if examples:
            gr.HTML("<p>Test images, mistakes first: true class → predicted</p>")
            gallery = gr.Gallery([*examples], show_label=False, allow_preview=False, buttons=[],
                                 interactive=False, height="auto", elem_id="examples")
        look_at_it = {"fn": look, "inputs": [image, layer, method],
                      "outputs": [classes, first, second, found], **alone}
        image.input(**look_at_it)
        for choice in (first, second, layer, method):
            choice.input(maps, [image, first, second, layer, method], found, **alone)
        if examples:
            def choose(event: Any) -> str:
                return examples[event.index][0]

            # Gradio goes by this, and cannot look up a name in a function.
            choose.__annotations__["event"] = gr.SelectData
            gallery.select(choose, None, image, trigger_mode="always_last",
                           api_visibility="private", show_progress="hidden").then(**look_at_it)
    # No request goes past the queue.
    return page.queue(api_open=False)


def serve(sources: Sequence[str | None], overrides: Sequence[str] = (), host: str = "127.0.0.1",
          port: int = 7860, max_mb: int = 20) -> None:
    """Serve the page until Ctrl-C.

    Args:
        sources, overrides: as of `Demo`.
        host: the address of this machine that is listened at.
        port: there.
        max_mb: how large an upload may be.

    Raises:
        UserError: as of `Demo`; Gradio is missing, or the address or the port cannot be had.
    """
    _gradio()
    if max_mb < 1:
        raise RunError(f"--max-mb is {max_mb}", hint="It takes megabytes, 1 or more.")
    _refuse_taken(host, port)
    demo = Demo(sources, overrides)
    # What is stopped otherwise shall remove its files as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Gradio asks its own page whether it is there, which is no matter for a proxy.
    for key in ("NO_PROXY", "no_proxy"):
        os.environ[key] = ",".join(filter(None, (os.environ.get(key), "localhost", host)))
    # Of pictures the page speaks, not the terminal.
    logging.getLogger("cvkit").setLevel("WARNING")
    with tempfile.TemporaryDirectory(prefix="cvkit-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = os.path.join(folder, "uploads")
        # An address of IPv6 stands in brackets where a port follows.
        name = f"[{host}]" if ":" in host else host
        page = build_page(demo, _examples(demo, Path(folder)))
        try:
            page.launch(server_name=name, server_port=port, share=False, quiet=True, inline=False,
                        prevent_thread_lock=True, max_file_size=f"{max_mb}mb", footer_links=[],
                        run_history=False, enable_monitoring=False, mcp_server=False, pwa=False,
                        ssr_mode=False, theme=_theme(), css=_CSS)
        except OSError as error:
            raise RunError(f"the page cannot be served at {name}:{port}: {error}") from None
        is_everywhere = host in ("0.0.0.0", "::")
        print(f"Open http://{socket.gethostname() if is_everywhere else name}:{port}", flush=True)
        try:
            # Windows' Python does not hear Ctrl-C while it waits for an event.
            while True:
                time.sleep(1)
        finally:
            page.close(verbose=False)


def _theme() -> Any:
    # The machine's own fonts: Gradio's default theme has some of Google's.
    gr = _gradio()
    return gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"],
                             font_mono=["ui-monospace", "monospace"])


def _examples(demo: Demo, folder: Path) -> list[tuple[str, str]]:
    if demo.run is None:
        return []
    try:
        return write_examples(demo.run, folder)
    except UserError as error:
        print(f"note       no examples: {error.problem}")
        return []


def _refuse_taken(host: str, port: int) -> None:
    """Refuse an address that cannot be listened at.

    Raises:
        RunError: says why.
    """
    if not 1 <= port <= 65535:
        raise RunError(f"--port is {port}", hint="It takes 1 to 65535.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise RunError(f"{host} is no address of this machine",
                           hint="--host takes 127.0.0.1, for this machine alone, or 0.0.0.0, for "
                                "all that reach it.") from None
        raise RunError(f"port {port} of {host} cannot be had: {error.strerror}",
                       hint=f"Another one: --port {port % 65535 + 1}") from None
