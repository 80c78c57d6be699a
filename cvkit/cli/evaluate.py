"""Evaluate a run on its test images: prints precision, recall and F1 per class, and METRICS.

    python tools/evaluate.py
    python tools/evaluate.py --run runs/resnet18_cifar10/2026-01-31_12-00-00
    python tools/evaluate.py --run runs/a/first runs/b/second
    python tools/evaluate.py TTA "[{NAME: HorizontalFlip}]"
    python tools/evaluate.py DATA.DATASET.root other_images METRICS "[{NAME: TopKAccuracy, k: 3}]"

Of a group of seeds or folds their mean and deviation are printed, of folds also the scores over all
images. Of several runs the probabilities are averaged; with TTA those of each image and of what
each transform makes of it. Without KEY VALUE the predictions.npz of one run is rewritten. Classes
and normalisation are always those that the run was trained with. Another folder of classes, or
table (DATA.DATASET.path), is tested whole; DATA.DATASET.test_fraction tests a part of it.
"""

import argparse

from cvkit.cli.tool import new_parser, parse_words
from cvkit.config.command_line import split_pairs
from cvkit.errors import ConfigError
from cvkit.system.command import command


def parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "evaluate")
    parser.add_argument("overrides", metavar="KEY VALUE", nargs="*",
                        help="evaluate with other DATA or METRICS")
    parser.add_argument("--run", metavar="RUN", nargs="+", action="extend",
                        help="a run folder; default: the newest; of several the average")
    return parser


def main(words: list[str]) -> None:
    args = parse_words(parser(), words)
    from cvkit.evaluation.out_of_fold import keep_out_of_fold
    from cvkit.evaluation.run_evaluation import evaluate
    from cvkit.runs.finding import is_group, newest_group
    from cvkit.runs.folder import MAY_EVALUATE, open_run, output_dir_of
    from cvkit.runs.group import Folds, open_group

    # After --run, argparse takes all for runs.
    names, pairs = split_pairs(args.run or [])
    files = [word for word in (*names, *args.overrides) if word.endswith(".pt")]
    if files:
        raise ConfigError(f"{files[0]} is a checkpoint file; runs are evaluated",
                          hint=f"{command('predict')} {files[0]} FOLDER tells the accuracy on "
                               "pictures in class folders.")
    words = [*pairs, *args.overrides]
    folder = output_dir_of(words)
    named = names[0] if len(names) == 1 else None if names else newest_group(folder)
    if named is not None and is_group(named):
        group = open_group(named)
        if set(words[::2]) - {"OUTPUT_DIR"}:
            raise ConfigError("a group of runs is not evaluated again",
                              hint=f"Name its runs: --run {group.folder}/"
                                   f"{'*fold' if isinstance(group, Folds) else 'seed'}_*")
        print(f"{group.title}\n{group.summary()}")
        if isinstance(group, Folds):
            print(keep_out_of_fold(group).table())
        return
    newest: list[str | None] = [None]
    runs = [open_run(name, folder, overrides=words, may_change=MAY_EVALUATE)
            for name in names or newest]
    for run in runs:
        print(f"run {run.folder}")
    print(evaluate(runs).table())
