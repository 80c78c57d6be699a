"""A trained model as parts of a page that runs it by itself, in a browser and without a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import os
import re
import tarfile
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvkit.data.pipeline import transform_name
from cvkit.data.transforms import is_fixed
from cvkit.deployment.export import Exported, export
from cvkit.errors import ConfigError, RunError, UserError
from cvkit.runs.folder import Run
from cvkit.runs.trained import Trained, open_trained
from cvkit.system.files import cache_folder, writing

# The runtime, as npm has it, and the smallest of its builds.
_RUNTIME = "onnxruntime-web-1.30.0.tgz"
_SHA512 = ("ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
           "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61")
_REGISTRY = "https://registry.npmjs.org"
RUNTIME_FILES = {"library": "package/dist/ort.wasm.bundle.min.mjs",
                 "wasm": "package/dist/ort-wasm-simd-threaded.wasm"}
# The transforms that page.js has, with the arguments that it knows.
_STEPS = {"Resize": ("height", "width"), "SmallestMaxSize": ("max_size",),
          "CenterCrop": ("height", "width")}
_AS_USUAL = {"interpolation": 1, "area_for_downscale": "image", "max_size_hw": None,
             "pad_if_needed": False}


@dataclass(frozen=True)
class PageModel:
    """What a page needs to name pictures.

    Attributes:
        facts: for the script: classes, input_size, background, transforms.
        files: gzip in base64, by name: the library, the wasm and the onnx.
        script: page.js.
        exported: what the export's check found.
        precision: of its weights.
    """

    facts: Mapping[str, Any]
    files: Mapping[str, str]
    script: str
    exported: Exported
    precision: str


def page_model(run: Run) -> PageModel:
    """Return the model of a run for a page: in fp16, or in fp32 where that is too coarse.

    It takes a picture as it is, without the views of TTA. The runtime is fetched from the npm
    registry once, and kept under `~/.cache/cvkit`.

    Raises:
        UserError: channels or a transform that the page cannot do, a model that cannot be
            exported, or no runtime.
    """
    own = {"DEVICE": run.config.DEVICE}
    trained = open_trained(run, own)
    channels, *size = trained.checkpoint.image_shape
    if channels not in (1, 3):
        raise ConfigError(f"the model takes {channels} channels, and a picture in a browser has 3, "
                          "or 1 in grey")
    facts = {"classes": list(trained.classes), "transforms": _steps(trained),
             "input_size": [*size, channels],
             "background": np.broadcast_to(trained.facts["background"], 3).tolist()}
    runtime = fetch_runtime()
    with tarfile.open(runtime) as archive:
        files = {name: archive.extractfile(member).read()  # type: ignore[union-attr]
                 for name, member in RUNTIME_FILES.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        try:
            precision, exported = "fp16", export(
                run, out=path, precision="fp16", overrides=own)
        except UserError:
            # What is wrong with both is said of the second.
            precision, exported = "fp32", export(run, out=path, overrides=own)
        files["onnx"] = path.read_bytes()
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    return PageModel(facts, {name: _packed(content) for name, content in files.items()}, script,
                     exported, precision)


def _steps(trained: Trained) -> list[dict[str, Any]]:
    """Return what a picture goes through before the model, as page.js does it.

    Raises:
        ConfigError: names what it cannot do.
    """
    steps, others = [], []
    for transform in trained.pipeline.transforms:
        name = transform_name(transform)
        is_usual = all(getattr(transform, argument, usual) == usual
                       for argument, usual in _AS_USUAL.items())
        if name in _STEPS and is_fixed(transform) and is_usual:
            steps.append({"name": name} | {field: getattr(transform, field)
                                           for field in _STEPS[name]})
        else:
            others.append(name)
    if others:
        raise ConfigError(f"the page cannot do {', '.join(others)} of TEST_TRANSFORMS",
                          hint=f"It does {', '.join(_STEPS)}, without interpolation or padding of "
                               "their own. Without --with-model the report can be written.")
    return steps


def fetch_runtime() -> Path:
    """Return the archive of the runtime, downloaded if it is not in the cache yet.

    Raises:
        RunError: it cannot be downloaded, or what comes is something else.
    """
    path = Path(cache_folder() or Path(tempfile.gettempdir(), "cvkit"), _RUNTIME)
    if path.is_file() and hashlib.sha512(path.read_bytes()).hexdigest() == _SHA512:
        return path
    named = filter(None, map(os.environ.get, ("npm_config_registry", "NPM_CONFIG_REGISTRY")))
    registry = next(named, _REGISTRY)
    url = f"{registry.rstrip('/')}/onnxruntime-web/-/{_RUNTIME}"
    # A registry's address may have a password in it.
    shown = re.sub(r"//[^/@]*@", "//", url)
    hint = f"Download {shown} yourself and put it there: {path}"
    print(f"download   {shown}, 33 MB, once")
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RunError(f"the runtime of the page cannot be downloaded: {error}",
                       hint=hint) from None
    if hashlib.sha512(content).hexdigest() != _SHA512:
        raise RunError(f"{shown} is not the file that it should be: its SHA-512 differs", hint=hint)
    part = path.with_suffix(f".{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    return path


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()
