"""Show a page in the browser on which a model names pictures and shows where it looked.

    python tools/demo.py runs/resnet18_cifar10/2026-01-31_12-00-00
    python tools/demo.py best.pt --port 8000
    python tools/demo.py best.pt --host 0.0.0.0 DEVICE cpu

Drop a picture, paste it or take it with the camera. Several runs or checkpoints are averaged; of
none that is named, the newest run is taken. Pictures stay on this machine, and only it reaches the
page, unless --host says otherwise; they are removed after an hour, or when the page is stopped.
"""

import argparse

from cvkit.cli.tool import new_parser, parse_words
from cvkit.config.command_line import split_pairs


def parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "demo")
    parser.add_argument("words", metavar="RUN|CHECKPOINT … [KEY VALUE …]", nargs="*",
                        help="what is shown; KEY VALUE as of predict.py")
    parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1",
                        help="0.0.0.0 lets in all that reach this machine; default 127.0.0.1")
    parser.add_argument("--port", metavar="N", type=int, default=7860, help="default 7860")
    parser.add_argument("--max-mb", metavar="N", type=int, default=20,
                        help="how large an upload may be; default 20")
    return parser


def main(words: list[str]) -> None:
    args = parse_words(parser(), words)
    from cvkit.deployment.demo_page import serve

    sources, pairs = split_pairs(args.words)
    serve(sources or [None], pairs, args.host, args.port, args.max_mb)
