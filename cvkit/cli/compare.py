"""Compare runs: a row for each, the best first: what differs in their configs, and results.

    python tools/compare.py runs/resnet18_cifar10/2026-01-31_12-00-00 runs/other/2026-02-01_09-30-00
    python tools/compare.py runs --sort "training time" --csv runs.csv

A folder stands for all runs below it. Of two runs that were tested on the same images it also says
whether chance makes such a difference.

Or keep what runs came to, in small files and a page of tables:

    python tools/compare.py runs/resnet18_cifar10/2026-01-31_12-00-00 --results results
"""

import argparse
import shutil
from typing import Any

from cvkit.cli.tool import new_parser, parse_words
from cvkit.system.files import user_path


def parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "compare")
    parser.add_argument("runs", metavar="RUN", nargs="*",
                        help="two or more run folders, or folders that hold some")
    parser.add_argument("--sort", metavar="COLUMN", default="test accuracy",
                        help="of the table, as OPTIMIZER.lr or test_loss; default test_accuracy")
    parser.add_argument("--csv", metavar="FILE", type=user_path,
                        help="write the table there, all of it and not rounded")
    parser.add_argument("--curves", action="store_true", help="draw their curves")
    parser.add_argument("--disagreements", metavar="N", type=int, nargs="?", const=20,
                        help="draw N images, 20 by default, that the first gets wrong and another "
                             "right")
    parser.add_argument("--out", metavar="FOLDER", type=user_path,
                        help="of these pictures; default: runs/compare/…")
    parser.add_argument("--results", metavar="FOLDER", type=user_path,
                        help="write there what each run came to, a file of JSON each, and tables "
                             "into FOLDER.md, with mean ± deviation of several seeds; a path that "
                             "ends in .json is the file of one run")
    parser.add_argument("--note", metavar="TEXT", default="",
                        help="with --results: what a reader has to know besides")
    return parser


def main(words: list[str]) -> None:
    args = parse_words(parser(), words)
    if args.results is not None:
        if args.csv or args.curves or args.disagreements is not None or args.out or (
                args.sort != parser().get_default("sort")):
            parser().error("--results goes with --note alone")
        if args.results.suffix == ".md":
            parser().error(f"--results is a folder, which {args.results.stem}.md lies beside, or a "
                           f"file that ends in .json, not {args.results}")
        from cvkit.visualizers.results import keep_all

        print(*keep_all(args.runs, args.results, args.note), sep="\n")
        return
    nodes: list[Any] = [{"NAME": "curves"}] if args.curves else []
    if args.disagreements is not None:
        nodes.append({"NAME": "disagreements", "count": args.disagreements})
    if args.note:
        parser().error("--note goes with --results")
    if args.out and not nodes:
        parser().error("--out goes with --curves or --disagreements")
    if args.disagreements is not None and args.disagreements < 1:
        parser().error(f"--disagreements is 1 or more, not {args.disagreements}")
    if args.csv and not args.csv.name:
        parser().error(f"--csv is a file, not {args.csv}")
    if not args.runs:
        parser().error("there is nothing to compare; name two runs or more")
    from cvkit.runs.table import open_table
    from cvkit.system.files import write_whole

    table = open_table(args.runs)
    table.sort(args.sort)
    for error in table.left_out[:5]:
        print("left out: " + str(error).split("\n")[0])
    if len(table.left_out) > 5:
        print(f"left out: and {len(table.left_out) - 5:,} more")
    # Into a file or a pipe there goes more than into most terminals.
    print(f"\n{table.text(shutil.get_terminal_size((200, 24)).columns)}\n")
    if tested := table.paired_test():
        print(f"{tested}\n")
    if args.csv:
        write_whole(args.csv, table.csv())
        print(f"written    {args.csv}")
    if nodes:
        from cvkit.visualizers import draw

        runs: Any = draw.open_subject(
            [str(run.folder) for entry in table.entries for run in entry.runs], [])
        draw.save_all(runs, nodes, args.out or draw.visuals_folder(runs))
