"""YAML text as config nodes that know the line of every value."""

from __future__ import annotations

import re
from typing import Any

import yaml

from cvkit.config.dialect import Loader
from cvkit.config.schema import BASE
from cvkit.config.tree import COMMAND_LINE, Config, Origin
from cvkit.errors import ConfigError

MOST_TEXT = 1_000_000  # characters of a config, counted with what its aliases repeat
_MOST_LEVELS = 40


def parse_value(text: str, path: str = "") -> Any:
    """Read one value as YAML, as it would be read in a config file.

    Args:
        path: the dotted key that it is for.
    """
    return parse_text(text, COMMAND_LINE.source, path)


# What is said in words of YAML's grammar, and what was probably meant. True: it begins earlier.
_YAML_HINTS = [
    (r"'\\t'", False, "YAML does not allow tabs: indent with spaces."),
    (r"could not find expected ':'", True, "Write KEY: value, with a colon and a space."),
    (r"flow (mapping|sequence)", True, "A bracket is not closed, or a comma is missing."),
    (r"quoted scalar expected escape", False,
     "Within double quotes \\ begins an escape; single quotes keep it."),
    (r"quoted scalar found unexpected end", True, "A quote is not closed."),
    (r"block (collection|mapping)", False, "What belongs together is indented alike; an item of a "
     "list begins with '- ', a key ends with ': '."),
    (r"mapping values are not allowed", False,
     "Is the line indented like its neighbours? A value with ': ' in it needs quotes."),
    (r"cannot start any token|alias|anchor|tag", False, "A value that begins with one of "
     "* & ! % @ ` needs quotes."),
]


def parse_text(text: str, source: str, path: str = "") -> Any:
    """Return YAML text as plain values, its mappings as open `Config` nodes with places."""
    loader = None
    on_command_line = f"{source} {path}".strip() if source == COMMAND_LINE.source else None
    try:
        loader = Loader(text)
        loader.room = MOST_TEXT
        if len(text) > loader.room:
            raise ConfigError(_TOO_LARGE, where=source)
        node = loader.get_single_node()
        return None if node is None else _convert(loader, node, source, path)
    except yaml.MarkedYAMLError as error:
        problem = " ".join(filter(None, [error.context, error.problem]))
        begins_earlier, hint = next(((earlier, hint) for pattern, earlier, hint in _YAML_HINTS
                                     if re.search(pattern, problem)), (False, None))
        mark = error.context_mark if begins_earlier else None
        mark = mark or error.problem_mark or error.context_mark
        where = on_command_line or (Origin(source, mark.line + 1) if mark else source)
        if blank := re.search(r"[^\S \t\r\n\x85\u2028\u2029]", text):  # pasted from a page
            hint = (f"Line {text.count(chr(10), 0, blank.start()) + 1} has a blank that YAML takes "
                    f"for a letter, U+{ord(blank[0]):04X}: type it again.")
        if on_command_line and re.search("flow|quoted", problem):
            hint = f"{hint} A value with spaces goes into quotes: {path or 'KEY'} '{{NAME: …}}'"
        raise ConfigError(f"not valid YAML: {problem}", where=where, hint=hint) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"not valid YAML: the character U+{error.character:04X} is not allowed",
                          where=on_command_line or Origin(source, line),
                          hint="Is it a text file? Within quotes write \\x07 or \\u2028.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}",
                          where=on_command_line or source) from None
    except RecursionError:
        raise ConfigError(_TOO_DEEP, where=on_command_line or source) from None
    finally:
        if loader is not None:
            loader.dispose()


_TOO_LARGE = (f"a config has at most {MOST_TEXT:,} characters, those counted again that its "
              "aliases (*) repeat")
_TOO_DEEP = "not valid YAML: nested too deeply, or an alias that contains itself"


def _convert(loader: Loader, node: yaml.Node, source: str, path: str, level: int = 0) -> Any:
    def origin(of: yaml.Node) -> Origin:
        on_file = source != COMMAND_LINE.source
        return Origin(source, of.start_mark.line + 1) if on_file else COMMAND_LINE

    def scalar(of: yaml.Node) -> Any:
        resolved = loader.resolve(yaml.ScalarNode, of.value, (True, False))
        if of.tag not in (resolved, "tag:yaml.org,2002:str"):
            raise ConfigError(f"not valid YAML: the tag {of.tag} means nothing here",
                              where=f"{origin(of)} {path}".strip())
        value = loader.construct_object(of)
        if isinstance(value, int) and abs(value) > 1e300:
            raise ConfigError(f"{of.value[:20]}… has too many digits",
                              where=f"{origin(of)} {path}".strip())
        return value

    # An alias stands for the same node: ten of ten of ten … would be more than memory holds.
    loader.room -= 4 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
    if loader.room < 0 or level > _MOST_LEVELS:
        raise ConfigError(_TOO_LARGE if loader.room < 0 else _TOO_DEEP,
                          where=f"{origin(node)} {path[:60]}".strip())
    kind = {yaml.MappingNode: "map", yaml.SequenceNode: "seq"}.get(type(node))
    if kind and node.tag != f"tag:yaml.org,2002:{kind}":
        raise ConfigError(f"not valid YAML: the tag {node.tag} means nothing here",
                          where=f"{origin(node)} {path}")
    if isinstance(node, yaml.MappingNode):
        config = Config()
        config.__dict__["_path"] = path
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError("keys are words, not lists or mappings",
                                  where=f"{origin(key_node)} {path}".strip())
            loader.room -= len(key_node.value)
            key = scalar(key_node)
            dotted = f"{path}.{key}" if path else str(key)
            if not isinstance(key, str):
                raise ConfigError(f"keys are words, not {key!r}",
                                  where=f"{origin(key_node)} {dotted}",
                                  hint=f'A word that looks like a value needs quotes: '
                                       f'"{key_node.value}". A list is written [1, 2].')
            if key == "<<":
                raise ConfigError("merge keys are not read", where=f"{origin(key_node)} {dotted}",
                                  hint=f"Put what is shared into a file and name it in {BASE}.")
            if key in config:
                raise ConfigError(f"{key} stands twice; it was first set in line "
                                  f"{config.origin(key).line}",
                                  where=f"{origin(key_node)} {dotted}", hint="Remove one of them.")
            config.put(key, _convert(loader, value_node, source, dotted, level + 1),
                        origin(key_node))
        return config
    if isinstance(node, yaml.SequenceNode):
        return [_convert(loader, item, source, f"{path}.{number}", level + 1)
                for number, item in enumerate(node.value)]
    return scalar(node)
