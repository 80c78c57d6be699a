"""Training a config several times: with other seeds, or with each fold as the test set in turn."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvkit.config import Config
from cvkit.config.load import GROUP_CONFIG, RESOLVED
from cvkit.config.tree import with_settings
from cvkit.errors import ConfigError, DivergenceError, RunError, UserError
from cvkit.evaluation.out_of_fold import keep_out_of_fold
from cvkit.runs.finding import find_groups, members_of
from cvkit.runs.folder import Run, is_among, new_folder
from cvkit.runs.group import Folds, Group, open_group
from cvkit.runs.initial_weights import with_named_run
from cvkit.session import train
from cvkit.system import distributed
from cvkit.system.command import command, quoted
from cvkit.system.files import user_path, write_whole, writing
from cvkit.system.log import LOG, SCREEN
from cvkit.system.text import and_more
from cvkit.training.resume import changes, with_findings


def train_seeds(config: Config, count: int, resume: bool | str | Path = False) -> Group:
    """Train a config with several seeds: SEED, SEED + 1, …; splits and test images stay the same.

    Args:
        config: from `load_config`.
        count: how many; more than a group that goes on has adds to it.
        resume: True goes on with the newest group of this config, a path with that one.

    Raises:
        ConfigError: fewer than two.
        UserError: as of `session.train`. What is trained by then is kept.
    """
    if count < 2:
        raise ConfigError(f"--seeds is 2 or more, not {count}",
                          hint="One seed is what SEED says, without --seeds.")
    settings = {f"seed_{config.SEED + number}": {"SEED": config.SEED + number}
                for number in range(count)}
    return _train_each(config, f"--seeds {count}", settings, resume)


def train_folds(config: Config, folds: int, repeats: int = 1,
                resume: bool | str | Path = False) -> Folds:
    """Cross-validate a config: train it with each fold as the test set, on all others.

    Args:
        config: from `load_config`.
        folds: 2 or more, of which each has the same shares of the classes.
        repeats: how often, each time with other folds.
        resume: as of `train_seeds`.

    Raises:
        ConfigError: fewer than two folds.
        UserError: as of `session.train`. What is trained by then is kept.
    """
    if folds < 2 or repeats < 1:
        raise ConfigError(f"--folds is 2 or more and --repeats 1 or more, not {folds} and "
                          f"{repeats}")
    settings = {f"{f'repeat_{repeat}_' if repeat else ''}fold_{fold}": {
                    "DATA.FOLDS": folds, "DATA.FOLD": fold, "DATA.FOLD_REPEAT": repeat}
                for repeat in range(repeats) for fold in range(folds)}
    group = _train_each(config, f"--folds {folds} --repeats {repeats}", settings, resume)
    assert isinstance(group, Folds)
    if not group.unfinished:
        said = keep_out_of_fold(group)
        LOG.info("all images, each by models that were not trained on it: "
                 f"{100 * said.accuracy:.2f} % of {len(said.true):,}", extra=SCREEN)
    return group


def _train_each(config: Config, flags: str, settings: Mapping[str, Mapping[str, Any]],
                resume: bool | str | Path) -> Group:
    """Train a run of each name, with its settings, in a folder; return the group.

    Args:
        flags: that ask for it, the first of which says what the folder's name ends in.
    """
    ending = flags.split()[0].strip("-")
    if distributed.launched() > 1:
        raise RunError(f"--{ending} trains in one process",
                       hint="Under torchrun, train one after the other: SEED 1, or DATA.FOLDS 5 "
                            "DATA.FOLD 0.")
    folder = _folder_of(with_settings(config, next(iter(settings.values()))), ending, resume)
    # As it is given, before a rate is found for it: what is told to go on names it.
    own = folder / GROUP_CONFIG
    is_new = not own.is_file()
    # Again, as one that goes on may be of more epochs, or of other seeds.
    write_whole(own, f"# {config.name}, {RESOLVED}\n{config.dump()}")
    diverged, is_known = {}, False
    for number, (name, setting) in enumerate(settings.items(), 1):
        LOG.info(f"== {name}, {number} of {len(settings)}", extra=SCREEN)
        if begun := members_of(folder):
            # All of them begin with the same weights, whatever was trained meanwhile.
            config = with_named_run(config, Run(begun[0]).config.MODEL.get("INIT_FROM"))
        try:
            is_known |= _train_one(with_settings(config, setting), folder / name, is_known)
        except DivergenceError as error:
            diverged[name] = error
            LOG.info(f"{name}: {error}", extra=SCREEN)
        except (KeyboardInterrupt, UserError) as error:
            if is_new and not members_of(folder):
                # Nothing was begun: there is no group.
                shutil.rmtree(folder, ignore_errors=True)
            elif isinstance(error, KeyboardInterrupt):
                words = quoted(own, *flags.split(), "--resume", folder)
                LOG.info(f"All of them go on with: {command('train')} {words}", extra=SCREEN)
            raise
    if len(diverged) == len(settings):
        raise RunError(f"all {len(settings)} runs diverged", hint=str(diverged[name]))
    group = open_group(folder)
    LOG.info(f"\n{group.title}\n{group.summary()}", extra=SCREEN)
    if diverged:
        LOG.info(f"left out   {', '.join(diverged)}: diverged", extra=SCREEN)
    return group


def _folder_of(config: Config, ending: str, resume: bool | str | Path) -> Path:
    """Return the folder of a group that goes on, or a new one."""
    found = find_groups(config.OUTPUT_DIR, config.name, ending)
    if isinstance(resume, (str, Path)) and resume != "auto":
        members = members_of(resume)
        if not members:
            raise RunError(f"no group {resume}", hint=f"{config.name} has "
                           f"{and_more(list(map(str, found[::-1])), 5) or 'none'}.")
        if ending.rstrip("s") not in members[0].name:
            raise RunError(f"{resume} is a group of {members[0].name.split('_')[-2]}s, not of "
                           f"{ending}")
        found = [user_path(resume)]
        _refuse_other(config, found[0])
        return found[0]
    if resume == "auto":
        found = [folder for folder in found if _is_alike(config, folder)]
    if resume and found:
        _refuse_other(config, found[-1])
        return found[-1]
    if resume is True:
        raise RunError(f"no group of {config.name} in {config.OUTPUT_DIR}/ to go on with",
                       hint="Without --resume one is begun.")
    parent = Path(config.OUTPUT_DIR) / config.name
    with writing(parent):
        return new_folder(parent, f"_{ending}")


def _differing(config: Config, folder: Path) -> list[str]:
    """Return in words by what a config would train something else than the runs of a group."""
    first = Run(members_of(folder)[0])
    free = ("SEED",) if first.folder.name.startswith("seed") else ("DATA.FOLD", "DATA.FOLD_REPEAT")
    found = changes(with_findings(config, first), first)
    # Those that are new would be of fewer.
    if (longest := _longest(folder)) > config.TRAIN.EPOCHS:
        found["TRAIN.EPOCHS"] = longest, config.TRAIN.EPOCHS
    return [f"{key}: {then} then, {now} now" for key, (then, now) in found.items()
            if not is_among(key, free)]


def _is_alike(config: Config, folder: Path) -> bool:
    """Tell whether a group was begun with this config; one that cannot be read is told of."""
    try:
        return not _differing(config, folder)
    except UserError as error:
        print(f"note       {folder} is left out: {error.problem}")
        return False


def _longest(folder: Path) -> int:
    """Return the most epochs that a run of a group is to have."""
    return max(Run(member).config.TRAIN.EPOCHS for member in members_of(folder))


def _refuse_other(config: Config, folder: Path) -> None:
    if differing := _differing(config, folder):
        flag, longest = folder.name.rpartition("_")[2], _longest(folder)
        # One of them may have been trained on alone.
        epochs = f" TRAIN.EPOCHS {longest}" if longest > config.TRAIN.EPOCHS else ""
        raise RunError(f"{folder} was begun with another config: {'; '.join(differing)}", hint=(
            f"Go on with its own: {command('train')} {folder / GROUP_CONFIG} --{flag} N --resume "
            f"{folder}{epochs}"))


def _train_one(config: Config, folder: Path, is_known: bool) -> bool:
    """Train a run of a group: to its end, if it was begun.

    Args:
        is_known: whether the group's images were compared with those that there are now.

    Returns:
        Whether they were by this run.
    """
    run = Run(folder) if (folder / "config.yaml").is_file() else None
    if run is None or not run.has_checkpoint:
        train(config, folder=folder)
        return False
    if is_known and (folder / "predictions.npz").is_file() and (
            len(run.metrics) >= config.TRAIN.EPOCHS):
        LOG.info(f"{folder} is there", extra=SCREEN)
    else:
        # One that is finished is refused where its images are others now.
        train(config, resume=run)
    return True
