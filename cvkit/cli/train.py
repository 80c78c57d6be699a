"""Train what a config describes.

    python tools/train.py configs/resnet18_cifar10.yaml
    python tools/train.py configs/resnet18_cifar10.yaml TRAIN.EPOCHS 5 OPTIMIZER.lr 0.05
    python tools/train.py configs/resnet18_cifar10.yaml --resume
    python tools/train.py configs/resnet18_cifar10.yaml --seeds 5
"""

import argparse
import os
import re

from cvkit.cli.tool import new_parser, parse_words
from cvkit.config import load_config, shipped
from cvkit.config.load import GROUP_CONFIG


def parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "train")
    parser.add_argument("config", metavar="CONFIG", nargs="?",
                        help="a YAML file, or the name of one of cvkit's own")
    parser.add_argument("overrides", metavar="KEY VALUE", nargs="*", help="set keys for this run")
    parser.add_argument("--resume", metavar="RUN", help="continue RUN, a run folder; without RUN, "
                        "the newest of this config; auto: that or, if there is none, a new one")
    parser.add_argument("--seeds", metavar="N", type=int,
                        help="train N times, with SEED and the numbers after it: mean ± deviation")
    parser.add_argument("--folds", metavar="N", type=int,
                        help="cross-validate: N times, with another fold as the test set each")
    parser.add_argument("--repeats", metavar="N", type=int,
                        help="with --folds: so often, each time with other folds")
    parser.add_argument("--check", action="store_true", help="try one batch, write nothing")
    parser.add_argument("--print-config", action="store_true",
                        help="print the resolved config and where each value was set")
    parser.add_argument("--list", action="store_true", help="list cvkit's own configs")
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    # `--resume` takes a run only if one follows: not another flag, a config or an override.
    for place, word in enumerate(arguments):
        following = arguments[place + 1] if place + 1 < len(arguments) else "-"
        if word == "--resume" and (re.match(r"-|[A-Z_]+(\.|$)", following)
                                   or shipped.is_config(following)):
            arguments[place] = "--resume="
    args = parse_words(parser(), arguments)
    if args.list:
        if len(arguments) > 1:
            parser().error("--list stands alone")
        return args
    if args.seeds is not None and args.folds is not None:
        parser().error("--seeds or --folds, one at a time")
    if args.repeats is not None and args.folds is None:
        parser().error("--repeats goes with --folds")
    names_config = shipped.is_config(args.config or "")
    args.is_of_run = args.resume and args.resume != "auto" and not names_config
    if args.is_of_run:
        args.overrides[:0] = [args.config] if args.config else []
        group = os.path.join(args.resume, GROUP_CONFIG)
        is_of_group = (args.seeds is not None or args.folds is not None) and os.path.isfile(group)
        args.config = group if is_of_group else os.path.join(args.resume, "config.yaml")
    elif not args.config or (args.resume and not names_config):
        parser().error("CONFIG is missing, a YAML file or a name that --list shows, such as "
                       "resnet18_digits")
    return args


def main(words: list[str]) -> None:
    args = parse(words)
    if args.list:
        print(shipped.listing())
        return
    if args.is_of_run and not os.path.isfile(args.config):
        from cvkit.runs.folder import open_run
        args.config = str(open_run(args.resume).folder / "config.yaml")
    config = load_config(args.config, args.overrides)
    if args.print_config:
        print(config.dump(origins=True), end="")
        return
    # This imports torch, and comes after what can be told without it.
    from cvkit.config.tree import with_settings
    from cvkit.repeat import train_folds, train_seeds
    from cvkit.session import check, train
    resume = args.resume if args.resume else args.resume is not None
    if args.check:
        check(config if args.folds is None else with_settings(config, {"DATA.FOLDS": args.folds}))
    elif args.seeds is not None or args.folds is not None:
        if args.seeds is not None:
            train_seeds(config, args.seeds, resume)
        else:
            train_folds(config, args.folds, 1 if args.repeats is None else args.repeats, resume)
    else:
        train(config, resume=resume)
