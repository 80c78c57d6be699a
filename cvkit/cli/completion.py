"""Print what completes commands, flags, configs and keys in bash or zsh.

    eval "$(cvkit completion bash)"     in ~/.bashrc
    eval "$(cvkit completion zsh)"      in ~/.zshrc
"""

import argparse
import glob
import re

from cvkit.cli.tool import module_of, new_parser, parse_words
from cvkit.config import shipped
from cvkit.config.schema import KEYS

# Of what begins with other letters than the word, file names for instance, the shell itself knows.
_BASH = """\
_cvkit() {
    local IFS=$'\\n'
    COMPREPLY=($(cvkit completion -- "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _cvkit cvkit
"""
_SCRIPTS = {"bash": _BASH, "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{_BASH}"}


def parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "completion")
    parser.add_argument("shell", metavar="SHELL", choices=[*_SCRIPTS], help=" or ".join(_SCRIPTS))
    return parser


def main(words: list[str]) -> None:
    if words[:1] == ["--"]:
        print("\n".join(candidates(words[1:] or [""])))
    else:
        print(_SCRIPTS[parse_words(parser(), words).shell], end="")


def candidates(words: list[str]) -> list[str]:
    """Return what the last word of a command line can become, by the help of its command."""
    from cvkit.cli.main import COMMANDS
    *before, begun = words
    found: list[str] = []
    if not before:
        found = [*COMMANDS]
    elif before[0] in COMMANDS:
        parser = module_of(before[0]).parser()
        usage = parser.format_usage()
        lacks_config = "CONFIG" in usage and not any(map(shipped.is_config, before))
        if begun.startswith("-"):
            found = re.findall(r"--[a-z][\w-]*", parser.format_help())
        # After a key comes its value.
        elif before[-1] not in KEYS:
            if lacks_config:
                found = [*shipped.names(), *glob.glob(f"{glob.escape(begun)}*.yaml")]
            if "KEY VALUE" in usage and (begun or not lacks_config):
                found += KEYS
    return sorted({word for word in found if word.startswith(begun)})
