"""Flags of visualizers: `--misclassified 10 --cam --cam-method LayerCAM` as nodes of a config."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from cvkit.config import COMMAND_LINE, Config, shipped
from cvkit.config.command_line import is_key, unknown_flag
from cvkit.config.parse import parse_value
from cvkit.errors import ConfigError
from cvkit.registry import NAME, VISUALIZERS
from cvkit.registry.listing import first_line
from cvkit.registry.signatures import accepts, describe_type, parameters_of
from cvkit.runs.experiment import Experiment

# These arguments choose images among the misclassified. Pictures drawn together show the same.
SELECTION = ("count", "order", "true_class", "predicted_class", "seed")


def arguments_of(name: str) -> dict[str, inspect.Parameter]:
    """Return the arguments of a visualizer that a config or a flag can set."""
    parameters, _ = parameters_of(VISUALIZERS.get(name))
    return {key: value for key, value in parameters.items() if key not in VISUALIZERS.offers}


def read_flags(flags: list[tuple[str, list[str]]], config: Config,
               own: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return the nodes that flags name, in their order.

    A flag starts from the config's own node of that visualizer. Visualizers of misclassified
    images that are drawn together with `--misclassified` show the images which that one shows.

    Args:
        flags: ("--cam-method", ["LayerCAM"]) and so on.
        config: of the run.
        own: the tool's other flags, which may be meant.

    Raises:
        ConfigError: no such flag, or no or a wrong value.
    """
    listed = {node.NAME: {key: value for key, value in node.items() if key != NAME}
              for node in reversed(config.VISUALIZERS)}
    given: dict[str, dict[str, Any]] = {}
    for flag, words in flags:
        name, argument = _meaning(flag, own)
        arguments = given.setdefault(name, {})
        # `--misclassified 10` says how many.
        if argument is None and words:
            argument = "count"
            if argument not in arguments_of(name):
                raise ConfigError(f"{flag} takes no value, and {words[0]!r} follows it",
                                  where=COMMAND_LINE)
        if argument is not None:
            arguments[argument] = _value(flag, arguments_of(name)[argument], words)
    gallery = None
    if "misclassified" in given:
        gallery = {**listed.get("misclassified", {}), **given["misclassified"]}
    return [{**same_images(gallery, {NAME: name, **listed.get(name, {})}), **arguments}
            for name, arguments in given.items()]


def same_images(gallery: Mapping[str, Any] | None, node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a node that shows the images which a `misclassified` node chooses, if it shows such.

    Args:
        gallery: that node; None changes nothing.
    """
    parameters = arguments_of(node[NAME])
    if gallery is None or node[NAME] == "misclassified" or not set(SELECTION) <= set(parameters):
        return node
    defaults = arguments_of("misclassified")
    return {**node, **{key: gallery.get(key, defaults[key].default) for key in SELECTION}}


def _meaning(flag: str, other: Iterable[str]) -> tuple[str, str | None]:
    """Return a flag's visualizer, and the argument that it sets if it names one."""
    names = {_dashed(name): name for name in VISUALIZERS.own}
    word = flag.removeprefix("--")
    if word in names:
        return names[word], None
    for dashed in sorted(names, key=len, reverse=True):
        argument = word.removeprefix(f"{dashed}-").replace("-", "_")
        if word.startswith(f"{dashed}-"):
            if argument in arguments_of(names[dashed]):
                return names[dashed], argument
            own = [f"--{dashed}-{_dashed(key)}" for key in arguments_of(names[dashed])]
            raise unknown_flag(flag, own, takes_keys=False)
    # Of so many not all are listed, and the tool has the fewer.
    raise unknown_flag(flag, [*other, *(f"--{name}" for name in names)])


def _value(flag: str, parameter: inspect.Parameter, words: list[str]) -> Any:
    if not words and parameter.annotation is bool:
        return True
    if not words:
        raise ConfigError(f"{flag} has no value", where=COMMAND_LINE,
                          hint=f"It takes {describe_type(parameter.annotation)}.")
    # A class named 007, or null, and a layer named 0 are words here, not numbers.
    is_text = accepts(parameter.annotation, "") or accepts(parameter.annotation, [""])
    values = [word if is_text else parse_value(word) for word in words]
    # One that fits neither way is refused with its own message when the node is checked.
    is_one = len(values) == 1 and (accepts(parameter.annotation, values[0])
                                   or not accepts(parameter.annotation, values))
    return values[0] if is_one else values


def split_words(words: list[str], own: dict[str, int | None]) \
        -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Part a command line into what the tool reads itself and the flags of visualizers.

    Args:
        words: all of them.
        own: the tool's flags, and how many values each takes; None for one or more.

    Returns:
        The tool's words, for argparse, and the visualizers' flags with their values.
    """
    plain, known, flags = [], [], []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--"):
            plain.append(word)
            continue
        flag, equals, value = word.partition("=")
        values = [value] if equals else []
        most = own.get(flag)
        # The first word after --cam-layer or --out is its value whatever it looks like.
        needs_value = most != 0 if flag in own else "-" in flag.removeprefix("--")
        while position < len(words) and not equals and (most is None or len(values) < most):
            following = words[position]
            if following.startswith("--") or not (
                    _is_value(following) or (needs_value and not values)):
                break
            values.append(following)
            position += 1
        if flag in own:
            known += [flag, *values]
        else:
            flags.append((flag, values))
    return [*known, "--", *plain], flags


def _is_value(word: str) -> bool:
    """Whether a word after a flag is its value: not a config, nor a key to override."""
    return not (shipped.is_config(word) or is_key(word))


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def listing() -> str:
    """Return all visualizers with what they draw, what they need, and their flags."""
    lines = []
    for name in VISUALIZERS.own:
        arguments = arguments_of(name)
        needed = Experiment(Config()).missing({NAME: name})
        lines.append(f"--{_dashed(name)}{' [N]' if 'count' in arguments else ''}"
                     f"{f'  (needs {needed})' if needed else ''}")
        lines.append(f"    {first_line(VISUALIZERS.get(name))}")
        for key, parameter in arguments.items():
            default = "any" if parameter.default is None else parameter.default
            default = " ".join(default) if isinstance(default, tuple) else default
            lines.append(f"      --{_dashed(name)}-{_dashed(key)}  "
                         f"{describe_type(parameter.annotation)}; default {default}")
    return "\n".join(lines)
