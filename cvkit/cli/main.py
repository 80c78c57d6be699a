"""The command `cvkit`: the first word says which of COMMANDS, the rest is for that one."""

from __future__ import annotations

import sys

import cvkit
from cvkit.cli.tool import module_of, run_command, run_tool
from cvkit.errors import UserError
from cvkit.system.text import in_columns, suggest

# Each is a file here: find_lr.py has the `parser()` and the `main(words)` of find-lr.
COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "export",
    "visualize",
    "demo",
    "compare",
    "sweep",
    "find-lr",
    "registry",
    "config",
    "completion",
)


def main() -> None:
    """Run the command of this process' words."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        run_command(sys.argv[1], sys.argv[2:])
    else:
        run_tool(lambda: _about(sys.argv[1:]))


def _about(words: list[str]) -> None:
    """Print the version, or which commands there are.

    Raises:
        UserError: something else is asked for.
    """
    if words == ["--version"]:
        print(f"cvkit {cvkit.__version__}")
    elif words in ([], ["-h"], ["--help"]):
        rows = [(f"  {name}", module_of(name).__doc__.split("\n")[0]) for name in COMMANDS]
        print("usage: cvkit COMMAND …\n\nImage classification from one YAML file: cvkit train "
              "resnet18_digits\n", *in_columns(rows),
              "\n`cvkit COMMAND --help` says more, `cvkit --version` which cvkit it is.", sep="\n")
    else:
        raise UserError(f"no command {words[0]!r}",
                        hint=suggest(words[0], COMMANDS, listed=len(COMMANDS)))
