"""List what a config can name, or describe one entry.

    python tools/registry.py
    python tools/registry.py model
    python tools/registry.py transform CutOut
    python tools/registry.py model timm
"""

import argparse

from cvkit.cli.tool import new_parser, parse_words
from cvkit.registry import REGISTRIES
from cvkit.registry.listing import describe, get_registry, names_of, overview
from cvkit.registry.user_code import import_user_code


def parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "registry")
    parser.add_argument("kind", metavar="KIND", nargs="?", help=", ".join(REGISTRIES))
    parser.add_argument("name", metavar="NAME", nargs="?", help="an entry of that kind")
    parser.add_argument("--import", dest="imports", metavar="FILE", action="append", default=[],
                        help="register your own file or module first, as IMPORTS does")
    return parser


def main(words: list[str]) -> None:
    args = parse_words(parser(), words)
    import_user_code(args.imports)
    registries = [get_registry(args.kind)] if args.kind else list(REGISTRIES.values())
    if args.name in registries[0].prefixes:
        print(names_of(registries[0], args.name))
    elif args.name:
        print(describe(registries[0], args.name))
    else:
        print("\n\n".join(overview(registry) for registry in registries))
