"""Name the class of pictures, with a run or a checkpoint file alone.

    python tools/predict.py runs/resnet18_cifar10/2026-01-31_12-00-00 cat.jpg more_pictures
    python tools/predict.py best.pt pictures --csv out.csv --top 3
    python tools/predict.py best.pt pictures TTA "[{NAME: HorizontalFlip}]" DEVICE cpu
    find pictures -name "*.jpg" | python tools/predict.py best.pt - --json

Several runs or checkpoints are averaged. Files that cannot be read are told at the end, with exit
code 1; the others are predicted all the same. Of a folder of class folders the accuracy is told.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from cvkit.cli.tool import new_parser, parse_words
from cvkit.config.command_line import split_pairs
from cvkit.errors import ConfigError, DataError
from cvkit.system.files import user_path


def parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "predict")
    parser.add_argument("words", metavar="RUN|CHECKPOINT … PATH … [KEY VALUE …]", nargs="*",
                        help="PATH is a file, a folder, or - for names on standard input")
    parser.add_argument("--csv", metavar="FILE", type=user_path, help="write a table")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each")
    parser.add_argument("--top", metavar="K", type=int, default=1, help="classes told; default 1")
    parser.add_argument("--copy-to", metavar="FOLDER", type=user_path,
                        help="copy files there, into a folder for each predicted class")
    parser.add_argument("--cam", metavar="FOLDER", nargs="?", const="cam", type=user_path,
                        help="draw where the model looked, of each file; FOLDER is cam/ by default")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    return parser


def main(words: list[str]) -> int:
    args = parse_words(parser(), words)
    named, pairs = split_pairs(args.words)
    # Lines of JSON stand alone on standard output.
    screen = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if args.json else screen):
        from cvkit.deployment.predict_files import predict_files
        from cvkit.evaluation.predictor import Predictor
        from cvkit.runs.trained import is_trained

        models = [word for place, word in enumerate(named) if not place or is_trained(word)]
        paths = [word for word in named if word not in models]
        if models and not is_trained(models[0]) and (paths or os.path.exists(models[0])):
            raise ConfigError(f"{models[0]} is no run and no checkpoint",
                              hint="A run, or a best.pt, comes first; then files or folders.")
        if not paths:
            took = "" if args.cam in (None, Path("cam")) else f" (--cam took {args.cam})"
            raise ConfigError(f"there is nothing to predict{took}",
                              hint="Name a run or a best.pt, and then files or folders.")
        names = _named_on_standard_input() if "-" in paths else []
        predictor = Predictor(models, pairs)
        for model, member in zip(models, predictor.members):
            if member.trained_in is not None and member.trained_in.folder != user_path(model):
                print(f"run {member.source}")
        outcome = predict_files(
            predictor, [path for path in paths if path != "-"], args.csv,
            screen if args.json else None, args.top, args.copy_to, args.cam, args.overwrite, names)
        for path in filter(None, (args.csv, args.copy_to, args.cam)):
            print(f"written    {path}")
        print(outcome)
    return 1 if outcome.unreadable else 0


def _named_on_standard_input() -> list[str]:
    """Return the lines, of any characters but the end of one: names of files need not be UTF-8."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
    found = [line for line in sys.stdin.read().split("\n") if line]
    if not found:
        raise DataError("standard input names no files", hint="It takes one a line.")
    return found
