"""YAML text as config nodes that know the line of every value."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from cvkit.config.dialect import Loader
from cvkit.config.schema import BASE
from cvkit.config.tree import COMMAND_LINE, Config, dotted
from cvkit.errors import ConfigError
from cvkit.registry.signatures import plain
from cvkit.system.command import quoted

# A config has at most so many characters, counted with what its aliases repeat, and levels.
MOST_TEXT, _MOST_LEVELS = 1_000_000, 40
_TOO_DEEP = "nested too deeply, or an alias that contains itself"
_TOO_LARGE = (f"a config has at most {MOST_TEXT:,} characters, those counted again that its "
              "aliases (*) repeat")
# Complaints in terms of YAML's grammar, and what to write instead.
_HINTS = [
    (r"'\\t'", "YAML does not allow tabs: indent with spaces."),
    (r"could not find expected ':'", "Write KEY: value, with a colon and a space."),
    (r"flow (mapping|sequence)", "A bracket is not closed, or a comma is missing."),
    (r"quoted scalar expected escape",
     "Within double quotes \\ begins an escape; single quotes keep it."),
    (r"quoted scalar found unexpected end", "A quote is not closed."),
    (r"block (collection|mapping)", "What belongs together is indented alike; an item of a "
     "list begins with '- ', a key ends with ': '."),
    (r"mapping values are not allowed",
     "Is the line indented like its neighbours? A value with ': ' in it needs quotes."),
    (r"cannot start any token|alias|anchor|tag", "A value that begins with one of "
     "* & ! % @ ` needs quotes."),
]
# The same where text begins or goes on with what is not taken for text.
_NO_PLAIN_TEXT = "expected '<document start>'|cannot start any token|alias|anchor|tag"


def parse_value(text: str, path: str = "", source: str = COMMAND_LINE) -> Any:
    """Return the value of YAML text: of a whole config, or of one key; mappings as open nodes.

    Args:
        text: to read; a value means the same in a file and on the command line, but for comments,
            of which a line of a shell has none.
        path: the dotted key that the value is for.
        source: the file that the text is of.

    Raises:
        ConfigError: it is no YAML, too much of it, or means what a config cannot hold; or a part
            of a line of a shell would be a comment.
    """
    reader = _Reader(source)
    try:
        loader = Loader(text)
        if len(text) > MOST_TEXT:
            raise ConfigError(_TOO_LARGE, where=source)
        node = loader.get_single_node()
        if source == COMMAND_LINE and (comment := _comment_of_a_line(text, node)):
            # Folders are called so, and what is meant would be cut off without a word.
            if _is_plain(text, node):
                return text.strip()
            raise ConfigError(f"{comment} would be a comment, and left out",
                              hint="Text that has ' #' in it stands in quotes within quotes: "
                                   "'\"base #2\"'", where=f"{source} {path}".strip())
        return None if node is None else reader.value(node, path)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line, problem, hint = _explained(error, text)
        if source == COMMAND_LINE and re.search("flow|quoted", problem) and (
                "begins with !" not in (hint or "")):
            hint = f"{hint} A value with spaces goes into quotes: {path or 'KEY'} '{{NAME: …}}'"
            if " #" in text:
                hint += ", and text that has ' #' in it into quotes within those."
        elif source == COMMAND_LINE and re.search(_NO_PLAIN_TEXT, problem) and (
                len(text) < 200 and "\n" not in text):
            words = quoted(path or "KEY", json.dumps(text, ensure_ascii=False))
            hint = f"{hint or ''} As text it stands in quotes within quotes: {words}".strip()
        raise ConfigError(f"not valid YAML: {problem}", hint=hint,
                          where=f"{reader.origin(line)} {path}".strip()) from None


def _comment_of_a_line(text: str, node: yaml.Node | None) -> str:
    """Return what YAML takes for a comment in a single line, if it does."""
    if "\n" in text.strip():
        # A part of a file, whose author knows what a comment is.
        return ""
    last = node
    while isinstance(last, yaml.CollectionNode) and not last.flow_style and last.value:
        # Those that no bracket closes end with the text.
        last = last.value[-1]
        last = last[1] if isinstance(last, tuple) else last
    rest = text[last.end_mark.index if last else 0:].strip()
    return rest if rest.startswith("#") else ""


def _is_plain(text: str, node: yaml.Node | None) -> bool:
    return node is None or (isinstance(node, yaml.ScalarNode) and node.style is None
                            and not text.lstrip().startswith(("!", "&")))


def _explained(error: Exception, text: str) -> tuple[int, str, str | None]:
    """Return the line of what YAML refuses, or 0, the problem, and what was probably meant."""
    if isinstance(error, yaml.reader.ReaderError):
        return (text.count("\n", 0, error.position) + 1,
                f"the character U+{error.character:04X} is not allowed",
                "Is it a text file? Within quotes write \\x07 or \\u2028.")
    if not isinstance(error, yaml.MarkedYAMLError):
        is_deep = isinstance(error, RecursionError)
        return 0, _TOO_DEEP if is_deep else " ".join(str(error).split()), None
    problem = " ".join(filter(None, [error.context, error.problem]))
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, problem)), None)
    if tag := re.search(r"(?m)^[^#'\"]*[\s\[,{](![\w*?]+)", f" {text}"):
        hint = f"A value that begins with ! needs quotes: '{tag[1]}'"
    # Text that was copied from a page has blanks which are no spaces.
    if blank := re.search(r"[^\S \t\r\n\x85\u2028\u2029]", text):
        hint = (f"Line {text.count(chr(10), 0, blank.start()) + 1} has a blank that YAML takes "
                f"for a letter, U+{ord(blank[0]):04X}: type it again.")
    # A bracket or quote that is not closed is noticed at its end, and mended where it begins.
    is_open = re.search("simple key|flow|quoted", error.context or "")
    mark = error.context_mark if is_open else error.problem_mark
    return mark.line + 1 if mark else 0, problem, hint


class _Reader:
    """Turns YAML's nodes into values, as many as a config may have."""

    def __init__(self, source: str):
        self.source, self.loader, self.room = source, Loader(""), MOST_TEXT

    def origin(self, line: int) -> str:
        is_in_file = line and self.source != COMMAND_LINE
        return f"{self.source}:{line}" if is_in_file else self.source

    def refusal(self, problem: str, node: yaml.Node, path: str,
                hint: str | None = None) -> ConfigError:
        origin = self.origin(node.start_mark.line + 1)
        return ConfigError(problem, where=f"{origin} {path}".strip(), hint=hint)

    def value(self, node: yaml.Node, path: str) -> Any:
        is_scalar = isinstance(node, yaml.ScalarNode)
        # An alias stands for the same node: ten of ten of ten … would be more than memory holds.
        self.room -= 4 + (len(node.value) if is_scalar else 0)
        if self.room < 0:
            raise self.refusal(_TOO_LARGE, node, path)
        if path.count(".") > _MOST_LEVELS:
            raise self.refusal(f"not valid YAML: {_TOO_DEEP}", node, path)
        tag = self.loader.resolve(type(node), node.value, (True, False))
        if node.tag != tag and not (is_scalar and node.tag == "tag:yaml.org,2002:str"):
            hint = f"A value that begins with ! needs quotes: '{node.tag}'"
            raise self.refusal(f"not valid YAML: the tag {node.tag} means nothing here", node, path,
                               hint if re.match(r"!\w", node.tag) else None)
        if is_scalar:
            value = self.loader.construct_object(node)
            if isinstance(value, int) and abs(value) > 1e300:
                raise self.refusal(f"{node.value[:20]}… has too many digits", node, path)
            return value
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, dotted(path, number))
                    for number, item in enumerate(node.value)]
        config = Config(path=path)
        for key_node, value_node in node.value:
            key = self.key(key_node, path, config)
            value = self.value(value_node, dotted(path, key))
            config.put(key, value, self.origin(key_node.start_mark.line + 1))
        return config

    def key(self, node: yaml.Node, path: str, config: Config) -> str:
        key = plain(self.value(node, path))
        # Epochs and classes may be numbers.
        key = str(key) if type(key) is int else key
        if not isinstance(key, str):
            fix = f'Write "{node.value}" if the string is meant, [1, 2] for a list.'
            raise self.refusal(f"keys are strings, not {key!r}", node, path,
                               fix if isinstance(node, yaml.ScalarNode) else None)
        if key == "<<":
            raise self.refusal("merge keys are not read", node, dotted(path, key),
                               f"Put what is shared into a file and name it in {BASE}.")
        if key in config:
            raise self.refusal(f"{key} is set twice; first at {config.origin(key)}", node,
                               dotted(path, key), "Remove one of them.")
        return key
