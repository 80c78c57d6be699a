"""Evaluate a run on its test images: rewrites predictions.npz, prints accuracy per class.

    python tools/evaluate.py
    python tools/evaluate.py --run runs/resnet18_cifar10/2026-01-31_12-00-00
"""

import argparse
import sys

from cvkit.config import parse_words
from cvkit.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", metavar="RUN", help="a run folder; default: the newest")
    args = parse_words(parser, sys.argv[1:])
    from cvkit.evaluation import evaluate, open_run

    run = open_run(args.run)
    print(f"run {run.folder}")
    print(evaluate(run).table())
    print(f"Written to {run.folder / 'predictions.npz'}")


if __name__ == "__main__":
    run_tool(main)
