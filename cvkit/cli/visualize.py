"""Draw what a run learned, or what a config will train on.

    python tools/visualize.py                            the newest run, what its config lists
    python tools/visualize.py --cam --misclassified 10   10 mistakes, and where the model looked
    python tools/visualize.py configs/resnet18_digits.yaml --dataset --samples

pictures (--list shows the flags of each, such as --cam-method LayerCAM):
  --curves  --lr-finder  --confusion  --misclassified [N]  --cam [N]  --cam-matrix [N]
  --per-class [N]  --top-losses [N]  --label-errors [N]  --calibration  --robustness [N]
  --roc [N]  --pr [N]  --embedding [N]  --cam-average  --cam-faithfulness [N]
  --filters  --feature-maps [N]  --samples [N]  --augmentations [N]  --dataset  --duplicates [N]
  --summary  --architecture  and, of several runs:  --curve-band  --wrong-in-all [N]
  --disagreements [N]
"""

import argparse

from cvkit.cli.tool import new_parser
from cvkit.system.files import user_path

# Flags that are not of a picture take so many values; None stands for one or more.
OWN = {"--run": None, "--list": 0, "--all": 0, "--report": 0, "--with-model": 0, "--out": 1,
       "--format": 1, "--dpi": 1}


def parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "visualize")
    parser.usage = f"{parser.prog} [--run RUN … | CONFIG] [PICTURES] [KEY VALUE …]"
    parser.add_argument("words", metavar="CONFIG | KEY VALUE", nargs="*", help="see above")
    parser.add_argument("--run", metavar="RUN", nargs="+", default=[], action="extend",
                        help="a run folder; several for --curves and --disagreements")
    parser.add_argument("--list", action="store_true", help="list the pictures and their flags")
    parser.add_argument("--all", action="store_true", help="draw everything there is")
    parser.add_argument("--report", action="store_true", help="write report.html and README.md")
    parser.add_argument("--with-model", action="store_true",
                        help="with --report: the model too, to name pictures in report.html")
    parser.add_argument("--out", metavar="FOLDER", type=user_path, help="default: visuals/ of RUN")
    parser.add_argument("--format", choices=["png", "svg", "pdf"], default="png")
    parser.add_argument("--dpi", type=int, default=150, help="dots per inch of a png; default 150")
    return parser


def main(words: list[str]) -> None:
    if {"-h", "--help"} & set(words):
        parser().print_help()
        return
    from cvkit.reporting import report
    from cvkit.visualizers import draw, flags
    plain, pictures = flags.split_words(words, OWN)
    args = parser().parse_args(plain)
    if args.report and "TTA" in args.words:
        parser().error("--report is of what the run says by the TTA of its config: leave TTA out")
    if args.run or args.words or not args.list:
        subject = draw.open_subject(args.run, args.words)
        nodes = flags.read_flags(pictures, subject.config, OWN)
    if args.list:
        print(flags.listing())
    elif args.with_model and not args.report:
        parser().error("--with-model goes with --report")
    elif args.report:
        if args.all or args.format != "png" or args.dpi != 150:
            parser().error("--report draws its own pictures: no --all, --format or --dpi with it")
        report.write_report(subject, nodes, args.out, args.with_model)
    else:
        nodes = draw.choose_nodes(subject, nodes, args.all)
        draw.save_all(subject, nodes, args.out, args.format, args.dpi)
