"""Print one of cvkit's own configs, to start one's own from.

    cvkit config resnet18_digits > mine.yaml
    cvkit train mine.yaml
"""

import argparse
import io
import sys

from cvkit.cli.tool import new_parser, parse_words
from cvkit.config import shipped


def parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "config")
    parser.add_argument("config", metavar="CONFIG", help="a name that `cvkit train --list` shows")
    return parser


def main(words: list[str]) -> None:
    text = shipped.copy_of(parse_words(parser(), words).config)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Configs are read as UTF-8, and on Windows `>` would write what code page there is.
        sys.stdout.reconfigure(encoding="utf-8")
    print(text, end="")
