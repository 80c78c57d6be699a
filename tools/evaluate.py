"""Evaluate a run on its test images: prints accuracy per class and METRICS.

    python tools/evaluate.py
    python tools/evaluate.py --run runs/resnet18_cifar10/2026-01-31_12-00-00
    python tools/evaluate.py DATA.DATASET.root other_images METRICS "[{NAME: TopKAccuracy, k: 3}]"

Without KEY VALUE the run's predictions.npz is rewritten. Classes and normalisation are always those
that the run was trained with. Another folder of classes is tested whole; DATA.DATASET.test_fraction
tests a part of it.
"""

import sys

from cvkit.cli import new_parser, parse_words, run_tool


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("overrides", metavar="KEY VALUE", nargs="*",
                        help="evaluate with other DATA or METRICS")
    parser.add_argument("--run", metavar="RUN", help="a run folder; default: the newest")
    args = parse_words(parser, sys.argv[1:])
    from cvkit.evaluation.run_evaluation import evaluate
    from cvkit.runs.folder import MAY_EVALUATE, open_run

    run = open_run(args.run, overrides=args.overrides, may_change=MAY_EVALUATE)
    print(f"run {run.folder}")
    print(evaluate(run).table())


if __name__ == "__main__":
    run_tool(main)
