"""A sweep that several workers share through a PostgreSQL: killed workers, a restarted server."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cvkit.runs.folder import Run
from cvkit.sweep.trials import original

optuna = pytest.importorskip("optuna")
NullPool = pytest.importorskip("sqlalchemy.pool").NullPool

SWEEP = """\
SWEEP:
  BASE: cvkit://resnet18_digits.yaml
  SPACE:
    OPTIMIZER.lr: [0.01, 0.03, 0.1]
    OPTIMIZER.weight_decay: [0.0, 5e-4]
  SAMPLER: {NAME: GridSampler}
  HEARTBEAT: 1
MODEL: {width: 4}
DATA: {LIMIT: 100}
TRAIN: {EPOCHS: 3}
WRITERS: []
"""
# Imported by the workers: an epoch takes long enough for them to be killed in.
SLOW = """\
import time
from cvkit import Reporter
from cvkit.registry import WRITERS

@WRITERS.register()
class slowly(Reporter):
    def epoch(self, state, values):
        time.sleep(0.5)
"""


def programs():
    """Return the folder of PostgreSQL's programs."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    which = shutil.which("pg_ctl")
    return found[-1] if found else which and Path(which).parent


@pytest.fixture(scope="module")
def server():
    """A PostgreSQL on the loopback: its address, and functions that stop and start it."""
    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    place = Path(tempfile.mkdtemp(prefix="cvkit-postgres-"))
    before = []
    if os.geteuid() == 0:
        # It refuses to run as root.
        user = pwd.getpwnam("postgres")
        os.chown(place, user.pw_uid, user.pw_gid)
        before = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def control(*words):
        subprocess.run([*before, str(folder / "pg_ctl"), "-w", "-D", str(place / "data"),
                        "-l", str(place / "log"), *words], check=True, cwd="/",
                       stdout=subprocess.DEVNULL)

    control("initdb", "-o", "-A trust -U cvkit -N")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    control("start", "-o", options)
    try:
        yield (f"postgresql://cvkit@127.0.0.1:{port}/postgres",
               lambda: control("stop", "-m", "immediate"), lambda: control("start", "-o", options))
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            control("stop", "-m", "immediate")
        shutil.rmtree(place, ignore_errors=True)


def open_study(url, name):
    address = url.replace("postgresql://", "postgresql+psycopg://")
    # Connections that nobody keeps, so that none is left open.
    storage = optuna.storages.RDBStorage(address, engine_kwargs={"poolclass": NullPool})
    return optuna.load_study(study_name=name, storage=storage)


def running(study):
    """Return the process and the trial of each worker that is at one."""
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    return {int(trial.user_attrs["worker"].split("-")[-2]): trial
            for trial in trials if "worker" in trial.user_attrs and trial.params}


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_two_of_four_workers_are_killed_and_the_server_restarted_and_no_trial_is_lost(
        server, tmp_path):
    url, stop, begin = server
    (tmp_path / "slowly.py").write_text(SLOW)
    (tmp_path / "shared.yaml").write_text(SWEEP.replace("WRITERS: []", (
        "IMPORTS: [slowly.py]\nWRITERS: [{NAME: slowly}]")))
    words = [sys.executable, "-m", "cvkit", "sweep", "shared.yaml", "SWEEP.STORAGE", url]
    logs = [(tmp_path / f"{number}.log").open("w+", encoding="utf-8") for number in range(4)]
    with contextlib.ExitStack() as stack:
        workers = []
        for log in logs:
            stack.enter_context(log)
            worker = subprocess.Popen(words, cwd=tmp_path, stdout=log, stderr=log, env={
                **os.environ, "OMP_NUM_THREADS": "1"})
            stack.callback(worker.kill)
            workers.append(worker)

        def said():
            return "\n".join(Path(log.name).read_text(encoding="utf-8") for log in logs)

        study = wait_for(lambda: _begun(url, "shared"))
        # Each of the four is within a trial, or soon will be; two of them die there.
        killed = dict(list(wait_for(lambda: len(running(study)) >= 3 and running(study)).items())[:2])
        for process in killed:
            os.kill(process, signal.SIGKILL)
        time.sleep(1)
        stop()
        # So long that the living are taken for dead as well.
        time.sleep(4)
        begin()
        for worker in workers:
            worker.wait(300)
        codes = sorted(worker.returncode for worker in workers)
        assert codes == [-signal.SIGKILL] * 2 + [0] * 2, said()
    study = open_study(url, "shared")
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    # Each point of the grid once, whoever trained it, whatever died.
    points = sorted((trial.params["OPTIMIZER.lr"], trial.params["OPTIMIZER.weight_decay"])
                    for trial in complete)
    assert points == [(lr, decay) for lr in (0.01, 0.03, 0.1) for decay in (0.0, 5e-4)], said()
    assert not [trial for trial in trials if trial.state.name in ("RUNNING", "WAITING")]
    # Those that died were tried again, with the same values, in the same folder.
    for trial in killed.values():
        again = [other for other in complete
                 if other.user_attrs.get("tries", [None])[0] == trial.number]
        assert [other.params for other in again] == [trial.params], said()
        assert trials[trial.number].state.name == "FAIL"
    first = {original(trial) for trial in complete}
    assert {path.name for path in (tmp_path / "runs" / "shared").glob("trial_*")} == {
        f"trial_{number:04d}" for number in first}
    # And what counts is what the run came to.
    for trial in complete:
        run = Run(tmp_path / "runs" / "shared" / f"trial_{original(trial):04d}")
        assert trial.value == run.metrics[-1]["test/accuracy"]
        assert len(run.metrics) == 3


def _begun(url, name):
    try:
        return open_study(url, name)
    except KeyError:
        return None
