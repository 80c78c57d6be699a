"""Parts of a model by the names of its parameters: those that patterns match, and its stages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from cvkit.errors import ConfigError
from cvkit.models.build import count_parameters
from cvkit.system.text import nearest

# Words for parts that every model has.
ALL, BACKBONE, HEAD, NORMS = WORDS = ("all", "backbone", "head", "norms")
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# A model that is divided into fewer parts is looked into.
_FEW = 4


def matching(model: nn.Module, patterns: Sequence[str], head: Callable[[], str]) -> list[str]:
    """Return the names of the parameters that patterns match, in the model's order.

    Args:
        model: with shared parameters under the first of their names.
        patterns: each is the name of a parameter or of a module that holds it, with `*`, `?` and
            `[…]` as in file names, or one of `all`, `backbone`, `head` and `norms`. What a pattern
            with `!` before it matches is taken out of the rest; alone, out of all.
        head: returns the name of the last layer, see `head_of`.

    Raises:
        ConfigError: a pattern matches nothing; names that do are suggested.
    """
    names = [name for name, _ in model.named_parameters()]
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")] or [ALL]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    found, left_out = ({name for pattern in group for name in _matched(model, pattern, names, head)}
                       for group in (wanted, unwanted))
    return [name for name in names if name in found - left_out]


def _matched(model: nn.Module, pattern: str, names: Sequence[str],
             head: Callable[[], str]) -> list[str]:
    """Return the names that one pattern matches."""
    is_module = pattern in dict(model.named_modules())
    if pattern == ALL and not is_module:
        return list(names)
    if pattern in (BACKBONE, HEAD) and not is_module:
        inner = f"{head()}."
        return [name for name in names if name.startswith(inner) == (pattern == HEAD)]
    if pattern == NORMS and not is_module:
        found = _norms(model)
    else:
        found = [name for name in names
                 if any(fnmatchcase(path, pattern) for path in paths_of(name))]
    if not found:
        if pattern == NORMS:
            raise ConfigError("the model has no norms with parameters, which 'norms' stands for")
        known = dict.fromkeys(path for name in names for path in paths_of(name))
        outer = [path for path in known if "." not in path]
        near = [f"Did you mean {each}?" for each in nearest(pattern, [*known, *WORDS])[:1]]
        raise ConfigError(f"no parameter of the model matches {pattern!r}", hint=" ".join(
            [*near, f"Its parts are {', '.join(dict.fromkeys([*outer, *WORDS]))}."]))
    return found


def _norms(model: nn.Module) -> list[str]:
    """Return the parameters of the layers that are called a norm, whichever library they are of."""
    return [f"{path}.{name}" for path, module in model.named_modules()
            if is_norm(module)
            for name, _ in module.named_parameters(recurse=False)]


def is_norm(module: nn.Module) -> bool:
    """Tell whether a layer is a norm: one of torch's kinds, or called so in another library."""
    name = type(module).__name__.lower()
    return isinstance(module, _NORMS) or ("norm" in name and "normfree" not in name)


def paths_of(name: str) -> Iterator[str]:
    """Yield the names of the modules around a parameter, the outermost first, and its own."""
    words = name.split(".")
    return (".".join(words[:end]) for end in range(1, len(words) + 1))


def stages_of(model: nn.Module) -> dict[str, list[str]]:
    """Return the stages of a model, from the input to the logits: the parameters of each by name.

    They are in the order in which the model defines them. Stages are the model's own parts; where
    those are few, or one holds over half of it and is none of several that are numbered (blocks of
    an encoder, items of `features`), it is looked into. What has vectors only (norms, biases)
    belongs to the stage before it, and so do the parameters of what is looked into.
    """
    parts = [name for name, child in model.named_children() if count_parameters(child)]
    total = count_parameters(model)
    while True:
        opened = next((name for name in parts if _is_to_open(model, name, parts, total)), None)
        if opened is None:
            break
        inner = [f"{opened}.{name}" for name, child in model.get_submodule(opened).named_children()
                 if count_parameters(child)]
        place = parts.index(opened)
        parts[place:place + 1] = inner
    stages: dict[str, list[str]] = {}
    # Parameters that come before the first stage belong to it.
    last, names = None, list[str]()
    for name, _ in model.named_parameters():
        part = next((part for part in parts if name.startswith(f"{part}.")), None)
        if part not in (None, last) and _has_matrices(model.get_submodule(part)):
            names = names if last is None else []
            stages[part] = names
            last = part
        names.append(name)
    return stages or {"": names}


def _is_to_open(model: nn.Module, name: str, parts: Sequence[str], total: int) -> bool:
    module = model.get_submodule(name)
    if not any(count_parameters(child) for child in module.children()):
        return False
    if len(parts) < _FEW and isinstance(module, (nn.Sequential, nn.ModuleList)):
        return True
    stem = re.sub(r"\d+$", "", name)
    is_numbered = sum(re.sub(r"\d+$", "", other) == stem for other in parts) > 1
    return 2 * count_parameters(module) > total and not is_numbered


def _has_matrices(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())
