"""Search for better values of a config's keys: what a SWEEP node says, by Optuna.

    python tools/sweep.py my_sweep.yaml
    python tools/sweep.py my_sweep.yaml --workers 2
    python tools/sweep.py my_sweep.yaml --status

Ctrl-C stops after the present step, and the same command goes on. Each trial is a run in
runs/my_sweep/, beside sweep.html, which shows what was found.
"""

import argparse

from cvkit.cli.tool import new_parser, parse_words


def parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "sweep")
    parser.add_argument("config", metavar="SWEEP", help="a YAML file with a SWEEP node")
    parser.add_argument("overrides", metavar="KEY VALUE", nargs="*",
                        help="set keys, also of SWEEP: SWEEP.TRIALS 10")
    parser.add_argument("--workers", metavar="N", type=int, default=1,
                        help="processes that share this machine; default 1")
    parser.add_argument("--status", action="store_true", help="say how far it is")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(words: list[str]) -> None:
    args = parse_words(parser(), words)
    from cvkit.config.load import load_sweep

    source = load_sweep(args.config, args.overrides)
    # This imports torch, and comes after what can be told without it.
    from cvkit.sweep import launch
    if args.status:
        launch.show_status(source)
    elif args.worker:
        launch.work_beside(source)
    else:
        launch.run_sweep(source, args.workers, [args.config, *args.overrides])
