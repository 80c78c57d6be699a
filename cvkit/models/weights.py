"""Fitting weights that were trained elsewhere to a model, by name and shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvkit.errors import CheckpointError, ConfigError
from cvkit.models.parts import paths_of
from cvkit.models.pretrained import begin_small
from cvkit.system.text import and_more, plural, suggest

# What torch.compile and FSDP write into names.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_COUNTER = "num_batches_tracked"


@dataclass
class Fit:
    """What becomes of each tensor of a model, and of those that it has no place for.

    Attributes:
        loaded: values by the model's names.
        adapted: of some of them, what was changed, in words.
        new: names of the model that begin anew, and why: "absent", or another shape.
        unused: names of the file that the model lacks.
        naming: how the names of the file differ, in words.
    """

    loaded: dict[str, Tensor] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    naming: str = ""

    def lines(self, model: nn.Module) -> list[str]:
        """Return the fit as a table."""
        own = _tensors(model.state_dict())
        numbers, total = (sum(value.numel() for value in values.values())
                          for values in (self.loaded, own))
        rows = [f"loaded     {len(self.loaded):,} of {plural(len(own), 'tensor')}, {numbers:,} of "
                f"{total:,} numbers" + self.naming]
        rows += [f"adapted    {name}: {what}" for name, what in self.adapted.items()]
        reasons: dict[str, list[str]] = {}
        for name, why in self.new.items():
            reasons.setdefault(why, []).append(name)
        rows += [f"new        {and_more(names, 4)}: {why}" for why, names in reasons.items()]
        if self.unused:
            rows.append(f"unused     {and_more(self.unused, 4)}: the model has none of that name")
        return rows


def fit_weights(model: nn.Module, weights: Mapping[str, Tensor], new: str = "") -> Fit:
    """Return how weights fit a model; nothing is loaded yet.

    Names may have a prefix more or less than the model's (`module.`, `backbone.`). Position
    embeddings of transformers are interpolated (as timm does: bicubic, with antialiasing), a first
    convolution for another number of channels is summed or repeated (timm's `adapt_input_conv`).

    Args:
        model: to fit them to.
        weights: of a file.
        new: name of the last layer, if it is to be left out, as it is of other classes.
    """
    own = _tensors(model.state_dict())
    theirs = {_plain_name(name): value for name, value in _tensors(weights).items()}
    naming, place_of = _best_names(own, theirs)
    first = _first_convolution(model)
    fit = Fit(naming=naming)
    for name, value in own.items():
        found = theirs.get(place_of.get(name, ""))
        if new and name.startswith(f"{new}."):
            fit.new[name] = "the file's are of other classes"
        elif found is None:
            # torch counts batches for norms without a momentum only; old files have no counts.
            if not name.endswith(_COUNTER):
                fit.new[name] = "absent"
        elif found.shape == value.shape:
            fit.loaded[name] = found
        elif (adapted := _adapted(name, value, found, name == first)) is not None:
            fit.loaded[name], fit.adapted[name] = adapted
        else:
            fit.new[name] = f"{_by(found.shape)} in the file, {_by(value.shape)} here"
    used = set(place_of.values())
    fit.unused = [name for name in theirs if name not in used and not name.endswith(_COUNTER)]
    return fit


def load_fit(model: nn.Module, fit: Fit, head: str, may_be_new: Sequence[str], what: str) -> None:
    """Load what fits.

    Args:
        model: of the fit.
        fit: of `fit_weights`.
        head: name of the model's last layer, which may be new; empty if it has none.
        may_be_new: names, with `*` and `?`, of parameters or of what holds them.
        what: the weights are of, for messages.

    Raises:
        CheckpointError: something does not fit that is neither of the head nor may be new, or is
            NaN.
        ConfigError: a name of `may_be_new` is none of the model's.
    """
    state = model.state_dict()
    own = _tensors(state)
    broken = [name for name, value in fit.loaded.items() if value.isnan().any()]
    if broken:
        raise CheckpointError(f"{what} is of a training that went wrong: it has NaN in "
                              f"{and_more(broken, 3)}")
    known = dict.fromkeys(path for name in own for path in paths_of(name))
    for pattern in may_be_new:
        if not any(fnmatchcase(path, pattern) for path in known):
            raise ConfigError(f"the model has no part {pattern!r}",
                              hint=suggest(pattern, [path for path in known if "." not in path]))
    missing = {name: why for name, why in fit.new.items()
               if not name.startswith(f"{head}.") and not any(
                   fnmatchcase(path, pattern) for path in paths_of(name) for pattern in may_be_new)}
    if missing:
        parts = list(dict.fromkeys(name.split(".")[0] for name in missing))
        hint = (f"INIT_NEW [{', '.join(parts)}] lets them begin anew." if len(fit.loaded) > 0.1 *
                len(own) else "It seems to be of another model: it has "
                f"{and_more(fit.unused, 3)}.")
        if len(fit.new) > 0.5 * len(own) and not any(why == "absent" for why in missing.values()):
            hint = "Its names are the same, its sizes are not: MODEL.width or the like is another."
        listed = [f"{name} ({why})" for name, why in missing.items()]
        raise CheckpointError(f"{what} does not fit the model: besides the head, "
                              f"{len(missing):,} of its {plural(len(own), 'tensor')} "
                              f"{'is' if len(missing) == 1 else 'are'} not in it, "
                              f"{and_more(listed, 3)}", hint=hint)
    model.load_state_dict({**state, **fit.loaded})
    begin_small(model, {f"{head}.weight"} & set(fit.new))


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a state, which may hold extra state of modules (`get_extra_state`)."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _plain_name(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _best_names(own: Mapping[str, Tensor],
                theirs: Mapping[str, Tensor]) -> tuple[str, dict[str, str]]:
    """Return a file's name for each of a model's, by the prefix with which most fit; and that.

    The prefix is told in words. Of several that fit alike (MoCo's two encoders) the file's first is
    taken.
    """
    more = dict.fromkeys(other[:-len(name)] for other in theirs for name in own
                         if other.endswith(f".{name}"))
    less = {name[:-len(other)] for name in own for other in theirs if name.endswith(f".{other}")}
    choices = [("", {name: name for name in own}),
               *((f", called {prefix}… in it", {name: prefix + name for name in own})
                 for prefix in more),
               *((f", called without {prefix} in it", {
                   name: name.removeprefix(prefix) for name in own if name.startswith(prefix)})
                 for prefix in sorted(less))]

    def agreeing(choice: tuple[str, dict[str, str]]) -> int:
        return sum(other in theirs and own[name].shape == theirs[other].shape
                   for name, other in choice[1].items())

    counts = list(map(agreeing, choices))
    best = counts.index(max(counts))
    naming, places = choices[best]
    for (words, _), count in zip(choices[best + 1:], counts[best + 1:]):
        if count == counts[best] > 0:
            naming += f"; what is{words.removeprefix(',')} fits as well"
    return naming, {name: other for name, other in places.items() if other in theirs}


def _first_convolution(model: nn.Module) -> str | None:
    """Return the name of the weights of the convolution that the image goes into."""
    return next((f"{name}.weight" for name, module in model.named_modules()
                 if isinstance(module, nn.Conv2d)), None)


def _adapted(name: str, own: Tensor, theirs: Tensor,
             is_first: bool) -> tuple[Tensor, str] | None:
    """Return what is made of weights of another shape, and how, or None."""
    adapted = _interpolated(name, own, theirs)
    return _for_channels(own, theirs) if adapted is None and is_first else adapted


def _for_channels(own: Tensor, theirs: Tensor) -> tuple[Tensor, str] | None:
    """Return the weights of a first convolution for the model's number of channels."""
    if own.ndim != 4 or theirs.ndim != 4 or own[:, 0].shape != theirs[:, 0].shape:
        return None
    count, given = own.shape[1], theirs.shape[1]
    if count == 1:
        return theirs.sum(1, keepdim=True), f"summed over {given} channels"
    times = math.ceil(count / given)
    return (theirs.repeat(1, times, 1, 1)[:, :count] * (given / count),
            f"repeated for {count} channels instead of {given}")


def _interpolated(name: str, own: Tensor, theirs: Tensor) -> tuple[Tensor, str] | None:
    """Return position embeddings (1, tokens, width) for another number of patches."""
    if not name.endswith(("pos_embedding", "pos_embed")) or own.ndim != 3 or theirs.ndim != 3 or (
            own.shape[2] != theirs.shape[2]):
        return None
    # Tokens of no patch, such as that of the class, stand first.
    for extra in (1, 0, 2, 5):
        old, new = (math.isqrt(max(tensor.shape[1] - extra, 0)) for tensor in (theirs, own))
        if old and new and (old**2 + extra, new**2 + extra) == (theirs.shape[1], own.shape[1]):
            maps = theirs[:, extra:].float().transpose(1, 2).unflatten(2, (old, old))
            maps = F.interpolate(maps, (new, new), mode="bicubic", antialias=True)
            patches = maps.flatten(2).transpose(1, 2).to(theirs.dtype)
            return (torch.cat([theirs[:, :extra], patches], 1),
                    f"interpolated from {old}×{old} to {new}×{new} patches")
    return None


def _by(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "one number"
