"""Train what a config describes.

    python tools/train.py configs/resnet18_cifar10.yaml
    python tools/train.py configs/resnet18_cifar10.yaml TRAIN.EPOCHS 5 OPTIMIZER.lr 0.05
    python tools/train.py configs/resnet18_cifar10.yaml --resume
"""

import argparse
import os
import re
import sys

from cvkit.cli import new_parser, parse_words, run_tool
from cvkit.config import load_config


def parse(arguments: list[str]) -> argparse.Namespace:
    # `--resume` takes a run only if one follows: not another flag, a config or an override.
    for place, word in enumerate(arguments):
        following = arguments[place + 1] if place + 1 < len(arguments) else "-"
        if word == "--resume" and re.match(r"-|[A-Z_]+(\.|$)|.*\.ya?ml$", following):
            arguments[place] = "--resume="
    parser = new_parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file; see configs/")
    parser.add_argument("overrides", metavar="KEY VALUE", nargs="*", help="set keys for this run")
    parser.add_argument("--resume", metavar="RUN", help="continue RUN, a run folder; without RUN, "
                        "the newest of this config; auto: that or, if there is none, a new one")
    parser.add_argument("--check", action="store_true", help="try one batch, write nothing")
    parser.add_argument("--print-config", action="store_true",
                        help="print the resolved config and where each value was set")
    args = parse_words(parser, arguments)
    names_config = (args.config or "").endswith((".yaml", ".yml"))
    args.is_of_run = args.resume and args.resume != "auto" and not names_config
    if args.is_of_run:
        args.overrides[:0] = [args.config] if args.config else []
        args.config = os.path.join(args.resume, "config.yaml")
    elif not args.config or (args.resume and not names_config):
        parser.error("CONFIG is missing, a YAML file such as configs/resnet18_digits.yaml")
    return args


def main() -> None:
    args = parse(sys.argv[1:])
    if args.is_of_run and not os.path.isfile(args.config):
        from cvkit.runs.folder import open_run
        args.config = str(open_run(args.resume).folder / "config.yaml")
    config = load_config(args.config, args.overrides)
    if args.print_config:
        return print(config.dump(origins=True), end="")
    # This imports torch, and comes after what can be told without it.
    from cvkit.session import check, train
    if args.check:
        return check(config)
    train(config, resume=args.resume if args.resume else args.resume is not None)


if __name__ == "__main__":
    run_tool(main, is_shared=True)
