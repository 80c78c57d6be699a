"""Write a trained model into one file that runs without cvkit, and check it.

    python tools/export.py runs/resnet18_cifar10/2026-01-31_12-00-00 --format onnx
    python tools/export.py best.pt --format torch_export --images my_images

The file takes uint8 images, normalises them itself and returns probabilities. It is compared with
the model, on the run's test images where they are there, and kept only if both say the same.
"""

import argparse

from cvkit.cli.tool import new_parser, parse_words


def parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "export")
    parser.add_argument("source", metavar="RUN|CHECKPOINT", help="a run folder, or a .pt file")
    parser.add_argument("overrides", metavar="KEY VALUE", nargs="*",
                        help="where your own code is now, and what it runs on: IMPORTS, DEVICE")
    parser.add_argument("--format", help="onnx, or torch_export for .pt2; default: as FILE ends")
    parser.add_argument("--precision", default="fp32", help="fp32, or fp16 for half the size")
    parser.add_argument("--out", metavar="FILE",
                        help="default: model.onnx or .pt2 in the run, or beside the checkpoint")
    parser.add_argument("--images", metavar="FOLDER",
                        help="check the file on these; default: the run's test images, or noise")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    return parser


def main(words: list[str]) -> None:
    args = parse_words(parser(), words)
    from cvkit.deployment.export import export

    print(f"Written to {export(**vars(args))}")
