"""Compare runs: what differs in their configs, results, curves, and which images one gets right.

    python tools/compare.py runs/resnet18_cifar10/2026-01-31_12-00-00 runs/other/2026-02-01_09-30-00

Or keep what runs came to, in small files and a page of tables:

    python tools/compare.py runs/resnet18_cifar10/2026-01-31_12-00-00 --results results
"""

import argparse
from typing import Any

from cvkit.cli.tool import new_parser, parse_words
from cvkit.errors import DataError, RunError
from cvkit.system.files import user_path


def parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "compare")
    parser.add_argument("runs", metavar="RUN", nargs="*", help="two or more run folders")
    parser.add_argument("--count", type=int, default=20, help="images to show; default 20")
    parser.add_argument("--out", metavar="FOLDER", type=user_path, help="default: runs/compare/…")
    parser.add_argument("--results", metavar="FOLDER", type=user_path,
                        help="write there what each run came to, a file of JSON each, and tables "
                             "into FOLDER.md; a path that ends in .json is the file of one run")
    parser.add_argument("--note", metavar="TEXT", default="",
                        help="with --results: what a reader has to know besides")
    return parser


def main(words: list[str]) -> None:
    args = parse_words(parser(), words)
    if args.results is not None:
        from cvkit.runs.folder import open_run
        from cvkit.visualizers.results import keep_all

        for path in keep_all([open_run(run) for run in args.runs], args.results, args.note):
            print(f"written    {path}")
        return
    if args.note:
        parser().error("--note goes with --results")
    if len(args.runs) < 2:
        parser().error("there is nothing to compare one run with; name two or more")
    from cvkit.visualizers import draw

    if args.count < 1:
        parser().error(f"--count is 1 or more, not {args.count}")
    runs: Any = draw.open_subject(args.runs, [])
    folder = args.out or draw.visuals_folder(runs)
    print(f"\n{runs.table()}\n")
    draw.save_all(runs, [{"NAME": "curves"}], folder)
    (folder / "table.txt").write_text(runs.table() + "\n", encoding="utf-8")
    try:
        draw.save_all(runs, [{"NAME": "disagreements", "count": args.count}], folder)
    except (RunError, DataError) as error:
        # The runs were tested on different images, or these are not here.
        print(f"left out: disagreements: {error}")
