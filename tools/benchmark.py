"""Measure cvkit against plain ways of doing the same; prints a table. Takes some minutes.

    python tools/benchmark.py
    python tools/benchmark.py step memory --json
    python tools/benchmark.py step MODEL.width 32 TRAIN.PRECISION fp32
"""

import argparse
import json
import sys
from pathlib import Path

from cvkit.cli import new_parser, parse_words, run_tool
from cvkit.config import load_config
from cvkit.system.text import in_columns


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("words", metavar="PART | KEY VALUE", nargs="*",
                        help="step: training, evaluation and input; limit: its matrix products "
                             "alone; freezing: the head alone; "
                             "growth: twice the images; "
                             "memory; start; cam: class activation maps; predict: files to a CSV; "
                             "sweep: 20 trials; "
                             "pictures: each of 10,000 test images; "
                             "peers: other frameworks, those that are installed. "
                             "All, if none is named. "
                             "Keys of configs/resnet18_cifar10.yaml hold for step, limit and "
                             "growth; MODEL.width, DATA.BATCH_SIZE and TRAIN.PRECISION for peers")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    return parse_words(parser, arguments)


def main() -> None:
    args = parse(sys.argv[1:])
    number = next((place for place, word in enumerate(args.words) if word[:1].isupper()),
                  len(args.words))
    names, overrides = args.words[:number], args.words[number:]
    # A mistake in the words is told before what takes long.
    load_config("configs/resnet18_cifar10.yaml", overrides)
    # benchmarks/ is beside tools/, and no part of cvkit.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.measure import measure

    machine, figures = measure(names, overrides)
    if args.json:
        print(json.dumps({"machine": machine, **figures}, indent=2))
        return
    print(machine)
    for part, values in figures.items():
        rows = [(f"  {name}", f"{value:12,.3f}" if value < 100 else f"{value:8,.0f}")
                for name, value in values.items()]
        print("", part, *in_columns(rows, "<55"), sep="\n")


if __name__ == "__main__":
    run_tool(main)
