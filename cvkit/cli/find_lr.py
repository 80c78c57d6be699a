"""Look for a learning rate: loss over rates that rise in a short training; nothing is trained.

    python tools/find_lr.py configs/resnet18_cifar10.yaml
    python tools/find_lr.py configs/resnet18_digits.yaml --steps 200 MODEL.norm layer

`SCHEDULER.max_lr find` in a config does the same before each training and uses what it finds.
"""

import argparse
from typing import Any

from cvkit.cli.tool import new_parser, parse_words
from cvkit.config import load_config
from cvkit.errors import ConfigError
from cvkit.system.files import user_path


def parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "find-lr")
    parser.add_argument("config", metavar="CONFIG",
                        help="a YAML file, or the name of one of cvkit's own")
    parser.add_argument("overrides", metavar="KEY VALUE", nargs="*", help="set keys for this run")
    parser.add_argument("--lowest", type=float, default=1e-5, help="first rate; default 1e-5")
    parser.add_argument("--highest", type=float, default=10.0, help="last rate; default 10")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps; default 100")
    parser.add_argument("--out", metavar="FOLDER", type=user_path,
                        help="default: runs/CONFIG/visuals")
    return parser


def main(words: list[str]) -> None:
    args = parse_words(parser(), words)
    config = load_config(args.config, args.overrides)
    from cvkit.reporting.checks import rate_key
    from cvkit.runs.experiment import Experiment
    from cvkit.session import find_lr
    from cvkit.visualizers import draw

    try:
        found = find_lr(config, args.lowest, args.highest, args.steps)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    parts: Any = Experiment(config)
    parts.range_test = found
    draw.save_all(parts, [{"NAME": "lr_finder"}], args.out)
    print(f"Suggested: {rate_key(config)} {found.suggestion:g}")
