"""What Optuna does in a sweep: samplers and pruners by name, and the storage of trials."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvkit.config import Config
from cvkit.errors import RunError, UserError
from cvkit.registry import NAME, PRUNERS, SEARCHERS
from cvkit.sweep.space import Space
from cvkit.sweep.trials import place_of
from cvkit.system.files import writing
from cvkit.system.log import LOG, SCREEN

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

# Seconds to wait for a database at first, later on, and between two tries.
PATIENCE, LATER, PAUSE = 60.0, 600.0, 1.0
_BASE = "is what others are derived from"
_LEFT_OUT = {"BaseSampler": _BASE, "BaseGASampler": _BASE, "BasePruner": _BASE,
             "GridSampler": "may try a point twice where there are several workers",
             "BruteForceSampler": "is GridSampler, which shares its points among workers",
             "PartialFixedSampler": "fixes keys, which the config does itself",
             "NSGAIIISampler": "is for several objectives"}


def require_optuna() -> None:
    """Refuse to go on without Optuna.

    Raises:
        UserError: says how to install it.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"a sweep needs Optuna ({error})",
                        hint="pip install 'optuna>=5.0'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _read(module: str) -> Callable[[], dict[str, Callable]]:
    def read() -> dict[str, Callable]:
        import importlib
        import importlib.util

        if importlib.util.find_spec("optuna") is None:
            return {}
        library = importlib.import_module(module)
        return {name: entry for name in library.__all__
                if inspect.isclass(entry := getattr(library, name))}

    return read


SEARCHERS.add_library("optuna.samplers", _read("optuna.samplers"), _LEFT_OUT)
PRUNERS.add_library("optuna.pruners", _read("optuna.pruners"), _LEFT_OUT)


@SEARCHERS.register()
def GridSampler(space: Space) -> BaseSampler:
    """Every combination of the listed values once, the last key changing first.

    Raises:
        ConfigError: a key has a range without a step.
    """
    from optuna.samplers import BaseSampler

    size = space.grid_size()

    class Grid(BaseSampler):
        """Gives a trial the point of the grid that its place among the trials stands for."""

        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict:
            return {}

        def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict) -> dict:
            return {}

        def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str,
                               param_distribution: Any) -> Any:
            return space.grid_point(place_of(study, trial) % size)[param_name]

    return Grid()


def build_tools(sampler: Config, pruner: Config | None, space: Space,
                seed: int) -> tuple[BaseSampler, BasePruner]:
    """Return what proposes values and what ends trials, as the nodes of a sweep name them.

    Args:
        seed: of the proposals, unless the node has one; what is proposed depends on it and on the
            number of the trial, so that of several workers each proposes something else.
    """
    from optuna.exceptions import ExperimentalWarning
    from optuna.pruners import NopPruner

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        built = NopPruner() if pruner is None else PRUNERS.build(pruner)
        return _seeded(sampler, space, sampler.get("seed", seed)), built


def _seeded(node: Config, space: Space, seed: int | None) -> BaseSampler:
    from optuna.samplers import BaseSampler

    def build(seed: int | None) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return SEARCHERS.build({**node, "seed": seed} if "seed" in node else node, space=space,
                                   seed=seed)

    # Points of one sequence are shared by number already.
    if seed is None or node[NAME] == "QMCSampler" or not (
            "seed" in node or SEARCHERS.asks_for(node, "seed")):
        return build(seed)
    first: int = seed

    class Seeded(BaseSampler):
        """Asks a sampler that was seeded by the number of the trial."""

        own = build(first)

        def before_trial(self, study: Study, trial: FrozenTrial) -> None:
            self.own = build(first + trial.number)
            self.own.before_trial(study, trial)

        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict:
            return self.own.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict) -> dict:
            return self.own.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str,
                               param_distribution: Any) -> Any:
            return self.own.sample_independent(study, trial, param_name, param_distribution)

        def after_trial(self, study: Study, trial: FrozenTrial, state: Any, values: Any) -> None:
            self.own.after_trial(study, trial, state, values)

    return Seeded()


# -- storage -----------------------------------------------------------------------------


def open_storage(url: str, file: Path, heartbeat: int) -> BaseStorage:
    """Return where trials are kept: a database, or a journal file.

    Args:
        url: of the database; empty for the file.
        file: of the journal.
        heartbeat: seconds between signs of life in a database.

    Raises:
        RunError: the database cannot be reached, after a minute, or the file not be written.
    """
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if not url:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            # Optuna's usual lock is a symbolic link, which not every drive has, nor Windows for
            # everyone, and which is refused in the folder of a sweep.
            lock = JournalFileOpenLock(str(file))
            return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _database(url, heartbeat)


def _database(url: str, heartbeat: int) -> BaseStorage:
    import sqlalchemy
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage

    class Database(RDBStorage):
        """One that a restart of the server, or of the network, does not end."""

        def record_heartbeat(self, trial_id: int) -> None:
            try:
                super().record_heartbeat(trial_id)
            except (StorageInternalError, UserError) as error:
                # A thread calls this, which would end; the next sign of life will do.
                _say_lost(error)

    url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    try:
        address = sqlalchemy.make_url(url)
        dialect = sqlalchemy.create_engine(url).dialect
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise RunError(f"STORAGE is no address of a database: {error}",
                       hint="postgresql://user:password@host:5432/name") from None
    except ImportError as error:
        raise RunError(f"the database needs a driver: {error}",
                       hint='For PostgreSQL: pip install "psycopg[binary]"') from None
    shown = address.render_as_string(hide_password=True)
    arguments, named = dialect.create_connect_args(address)

    patience = PATIENCE

    def connect() -> Any:
        """Connect, as soon as the server answers."""
        return patient(lambda: dialect.connect(*arguments, **named), dialect.loaded_dbapi.Error,
                       f"the database {shown}", patience)

    try:
        storage = patient(lambda: Database(
            url, {"creator": connect, "pool_pre_ping": True}, heartbeat_interval=heartbeat,
            grace_period=2 * heartbeat),
            # Two that make the tables at once disturb each other.
            (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError),
            f"the tables of {shown}", 10)
        patience = LATER
        return storage
    except RuntimeError as error:
        # Its tables are of another version of Optuna.
        raise RunError(f"{shown} cannot be used: {error}") from None


def patient(action: Callable[[], Any], errors: Any, what: str, patience: float = LATER) -> Any:
    """Return what an action returns, tried again for a while if it fails; say so.

    Args:
        errors: that are waited out.
        what: it is about, for messages.
        patience: in seconds.

    Raises:
        RunError: it failed to the last.
    """
    end, is_told = time.monotonic() + patience, False
    while True:
        try:
            return action()
        except errors as error:
            reason = str(getattr(error, "orig", error)).strip().split("\n")[0]
            if time.monotonic() >= end:
                raise RunError(f"{what} cannot be reached: {reason}", hint=(
                    "Is the server up, and its name, port, user and password right? The same "
                    "command goes on when it is.")) from None
            if not is_told:
                LOG.info(f"waiting    for {what}, up to {patience:.0f} s: {reason}", extra=SCREEN)
                is_told = True
            time.sleep(PAUSE)


def _say_lost(error: Exception) -> None:
    reason = str(error.__cause__ or error).strip().split("\n")[0]
    LOG.info(f"note       the database was out of reach for a moment: {reason}", extra=SCREEN)
