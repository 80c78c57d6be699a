"""A sweep: what its config describes, its folder, its study in Optuna, and its workers."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
import uuid
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cvkit.config import Config
from cvkit.config.load import SweepConfig
from cvkit.config.tree import in_words
from cvkit.data.images import ImageData
from cvkit.errors import RunError, UserError, raise_together
from cvkit.registry import NAME, PRUNERS, SEARCHERS
from cvkit.registry.user_code import import_user_code
from cvkit.runs.folder import MAY_CHANGE, WHERE_IT_RUNS, is_among, refuse_links
from cvkit.sweep.engine import build_tools, open_storage, require_optuna
from cvkit.sweep.space import Space
from cvkit.sweep.trials import WORKER, fail
from cvkit.system.files import lock_file, writing

if TYPE_CHECKING:
    from optuna.study import Study

JOURNAL = "journal.log"
_WORKERS = ".workers"
_WORKER_NAME = re.compile(r"\w[\w.]*-\d+-[0-9a-f]{8}")
# Seconds that a trial may have no worker.
_UNNAMED = 60
# What a study is noted with: the split whose values choose; its images, and where they were.
MONITORED = "monitored"
_IMAGES = "images"
_PATHS = "paths"


def _told(paths: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in paths.items()) or "those of the data set"


def _identities(data: ImageData) -> dict[str, str]:
    return {name: split.identity for name, split in data.splits.items()}


def _host() -> str:
    return re.sub(r"[^\w.]", "_", platform.node())


def _may_live(worker: str) -> bool:
    """Tell by the name of another worker of this machine whether its process may be there.

    One sweep without a database is of one machine at a time: what another one began has ended.
    """
    host, process, _ = worker.rsplit("-", 2)
    if host != _host() or int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


class Sweep:
    """What a config with a SWEEP node describes.

    Args:
        source: from `load_sweep`.

    Attributes:
        node: SWEEP.
        usual, base: the first value of each key, and the config of such a trial.
        space: the keys that are tried.
        trials: how many there are to be.
        folder: `OUTPUT_DIR/<name>/`, where the trials are: `trial_0000/`.

    Raises:
        UserError: something in it is wrong, or Optuna is not installed.
    """

    def __init__(self, source: SweepConfig):
        require_optuna()
        self.source, self.node, self.name = source, source.node, source.name
        # What SAMPLER and PRUNER name may be a user's own.
        first = source.config({})
        import_user_code(list(first.IMPORTS), where=first.where("IMPORTS"))
        raise_together([problem for registry, key in ((SEARCHERS, "SAMPLER"), (PRUNERS, "PRUNER"))
                        if self.node[key] is not None
                        for problem in registry.problems(self.node[key])])
        self.space = Space(source)
        self.usual = {each.key: each.corners[0] for each in self.space.dimensions}
        self.base = self.config(self.usual)
        self.folder = Path(self.base.OUTPUT_DIR) / self.name
        if self.folder.is_dir():
            # The lock of the journal comes and goes while others write.
            refuse_links([self.folder, *(
                path for path in self.folder.iterdir()
                if not path.name.startswith(f"{JOURNAL}.lock") or path.is_symlink())])
        # When trials without a worker were seen first.
        self._unnamed: dict[int, float] = {}
        # Here, before anything is written: they may refuse their arguments, or the space.
        self._sampler, self._pruner = build_tools(self.node.SAMPLER, self.node.PRUNER, self.space,
                                                  self.base.SEED)
        is_grid = self.node.SAMPLER[NAME] == "GridSampler"
        self.trials = (min(self.node.TRIALS, self.space.grid_size()) if is_grid
                       else self.node.TRIALS)

    def config(self, values: dict[str, Any]) -> Config:
        """Return the config of a trial with these values."""
        monitor = {"TRAIN.MONITOR": self.node.MONITOR} if self.node.MONITOR else {}
        return self.source.config({**monitor, **values})

    def measure(self, study: Study) -> str:
        """Return what is searched for, and on which images: "val accuracy"."""
        return f"{study.user_attrs.get(MONITORED, '')} {self.base.TRAIN.MONITOR}".strip()

    def folder_of(self, number: int) -> Path:
        """Return the folder of a trial, in which its run is, or a run for each of SEEDS."""
        return self.folder / f"trial_{number:04d}"

    def config_file_of(self, number: int) -> Path:
        """Return the config of a trial's run, of several that of its first seed."""
        seed = "" if self.node.SEEDS == 1 else f"seed_{self.base.SEED}"
        return self.folder_of(number) / seed / "config.yaml"

    # -- the study -------------------------------------------------------------------

    @cached_property
    def storage(self) -> Any:
        return open_storage(self.node.STORAGE, self.folder / JOURNAL, self.node.HEARTBEAT)

    def find_study(self) -> Study | None:
        """Return the study, or None if none was begun.

        Raises:
            RunError: it was begun with another space, or config; or the storage is out of reach.
        """
        import optuna

        if not self.node.STORAGE and not (self.folder / JOURNAL).is_file():
            return None
        try:
            study = optuna.load_study(study_name=self.name, storage=self.storage,
                                      sampler=self._sampler, pruner=self._pruner)
        except KeyError:
            return None
        except Exception as error:
            if self.node.STORAGE or isinstance(error, UserError):
                raise
            # Whatever Optuna stumbles over when it reads its file.
            raise RunError(f"{self.folder / JOURNAL} is damaged: {type(error).__name__}: {error}",
                           hint="Put a copy back, or remove its last line if that was cut "
                                "off.") from error
        self._refuse_other(study)
        return study

    def begin(self, is_lower_better: bool, data: ImageData) -> Study:
        """Return the study, begun if it was not; errors as of `find_study`.

        Args:
            is_lower_better: whether the value that is searched for is.
            data: of all trials.

        Raises:
            RunError: it was begun with other images.
        """
        import optuna

        study = optuna.create_study(study_name=self.name, storage=self.storage,
                                    direction="minimize" if is_lower_better else "maximize",
                                    load_if_exists=True)
        if "sweep" not in study.user_attrs:
            if next(self.folder.glob("trial_*"), None) is not None:
                raise RunError(f"{self.folder} has trials of another sweep",
                               hint="Move them elsewhere, or give the file another name.")
            study.set_user_attr(MONITORED, data.monitored)
            study.set_user_attr(_PATHS, self._paths())
            study.set_user_attr(_IMAGES, _identities(data))
            study.set_user_attr("sweep", self._description())
        found = self.find_study()
        assert found is not None
        if found.user_attrs.get(_IMAGES, _identities(data)) != _identities(data):
            raise RunError(f"the sweep {self.name} was begun with other images: "
                           f"{_told(found.user_attrs[_PATHS])} then, {_told(self._paths())} now",
                           hint="Put back what was there to go on, or give the file another name.")
        return found

    def has_other_paths(self, study: Study) -> bool:
        """Tell whether the images are looked for elsewhere than when the sweep was begun."""
        return study.user_attrs.get(_PATHS, self._paths()) != self._paths()

    def _paths(self) -> dict[str, str]:
        return {key: in_words(value) for key, value in self.base.flat().items()
                if is_among(key, MAY_CHANGE) and not is_among(key, WHERE_IT_RUNS)}

    def _description(self) -> dict[str, dict[str, str]]:
        """Return what trials of one study have in common, in words."""
        keys = [each.key for each in self.space.dimensions]
        rest = {key: in_words(value) for key, value in self.base.flat().items()
                if not is_among(key, [*MAY_CHANGE, *keys])}
        return {"SPACE": self.space.text(), "config": {**rest, "SEEDS": str(self.node.SEEDS)}}

    def _refuse_other(self, study: Study) -> None:
        then, now = study.user_attrs.get("sweep", self._description()), self._description()
        lines = [f"{key}: {then[part].get(key, 'not set')} then, "
                 f"{now[part].get(key, 'not set')} now"
                 for part in ("SPACE", "config") for key in {**then[part], **now[part]}
                 if then[part].get(key) != now[part].get(key)]
        if lines:
            raise RunError(f"the sweep {self.name} was begun with another "
                           f"{'space' if then['SPACE'] != now['SPACE'] else 'config'}: "
                           + "; ".join(lines),
                           hint="Put back what was there to go on, or give the file another "
                                "name.")

    # -- workers ---------------------------------------------------------------------

    @contextlib.contextmanager
    def working(self) -> Iterator[str]:
        """Be a worker meanwhile: yield a name that others can tell from that of a dead one."""
        # Host and process may be the same again, in a container.
        name = f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        path = self.folder / _WORKERS / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w", encoding="utf-8")
        try:
            with file:
                lock_file(file, tells=False)
                yield name
        finally:
            path.unlink(missing_ok=True)

    def fail_dead(self, study: Study, own: str) -> None:
        """End the tries of workers that are gone.

        On this machine the lock that a worker holds tells that it lives, or its process where
        files cannot be locked; to a database each one gives signs of life.

        Args:
            own: name of the worker that asks.
        """
        import optuna

        if self.node.STORAGE:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                optuna.storages.fail_stale_trials(study)
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            worker, now = trial.user_attrs.get(WORKER), time.monotonic()
            if worker is None:
                # It was just asked for, or its worker died right then.
                since = self._unnamed.setdefault(trial.number, now)
                is_lost = now - since > _UNNAMED + 2 * self.node.HEARTBEAT
            else:
                is_lost = not self.node.STORAGE and worker != own and self._is_dead(worker)
            if is_lost:
                fail(study, trial)

    def _is_dead(self, worker: str) -> bool:
        # The storage may be a stranger's, and this becomes a part of a path.
        if not _WORKER_NAME.fullmatch(str(worker)):
            return True
        path = self.folder / _WORKERS / worker
        try:
            file: IO = path.open("r+", encoding="utf-8")
        except OSError:
            # It ended, and took its file with it.
            return True
        with file:
            try:
                is_locked = lock_file(file, tells=False)
            except BlockingIOError:
                return False
        if not is_locked and _may_live(worker):
            return False
        path.unlink(missing_ok=True)
        return True
