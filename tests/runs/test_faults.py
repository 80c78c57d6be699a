"""What goes wrong around a training: disks, files, workers, clocks, memory, a second process."""

import contextlib
import errno
import gc
import io
import multiprocessing
import os
import re
import resource
import shutil
import tempfile
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import paint
from helpers import at_step, before_each_step
from test_kill import same
from torch import nn
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cvkit.config import load_config
from cvkit.data import build_data
from cvkit.errors import CheckpointError, DataError, RunError, frees_on_error
from cvkit.runs.checkpoint import Checkpoint
from cvkit.runs.finding import find_runs
from cvkit.runs.folder import Run
from cvkit.session import build_trainer, train
from cvkit.training.failures import largest_that_fits
from cvkit.training.resume import CheckpointInterval
from cvkit.training.state import TrainingState
from cvkit.training.trainer import Trainer

FOLDER = {"DATA.DATASET": {"NAME": "ImageFolder", "root": "../painted"}, "DATA.LIMIT": 0}
# Image by image, decoded each time: files are wanted in the middle of an epoch.
EACH_TIME = {**FOLDER, "DATA.CACHE_GB": 0.0}


@pytest.fixture
def pictures(tmp_path, monkeypatch, quick):
    """A folder of 120 training and 12 test images, beside the folder that the test runs in."""
    random = np.random.default_rng(0)
    paint(tmp_path / "painted", "train", 40, random)
    paint(tmp_path / "painted", "test", 4, random)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "painted"


def newest() -> Run:
    return Run(find_runs("runs")[-1])


# -- images ----------------------------------------------------------------------------------------


def a_file_of(pictures, batch, epoch=0):
    """Return the file of the first image of a batch, of 120 in batches of 32."""
    place = np.random.default_rng([0, epoch]).permutation(120)[32 * batch]
    return sorted(pictures.glob("train/*/*.png"), key=lambda path: (
        ["blue", "green", "red"].index(path.parent.name), path.name))[place]


@pytest.mark.parametrize("workers, start_method", [(0, "fork"), (1, "fork"), (1, "forkserver")],
                         indirect=["start_method"])
@pytest.mark.parametrize("fault", ["missing", "truncated"])
def test_an_image_lost_in_mid_epoch_is_named_and_nothing_else_is_lost(pictures, monkeypatch, capsys,
                                                                      fault, workers, start_method):
    settings = {**EACH_TIME, "DATA.WORKERS": workers}
    config = load_config("../tiny.yaml", settings)
    whole = train(config)
    path = a_file_of(pictures, 3, epoch=1)
    content = path.read_bytes()

    def lose():
        path.unlink()
        if fault == "truncated":
            path.write_bytes(content[:-40])

    with monkeypatch.context() as patched:
        # Four batches an epoch; workers make two of them ahead.
        at_step(patched, 5 if not workers else 3, lose)
        with pytest.raises(DataError) as caught:
            train(config)
    said = "is gone since" if fault == "missing" else "cannot be read as an image"
    assert f"painted/train/{path.parent.name}/{path.name} {said}" in str(caught.value)
    assert "DATA.DATASET.skip_unreadable true leaves such files out" in str(caught.value)
    broken = newest()
    out = capsys.readouterr().out
    assert f"Go on from the last checkpoint: python tools/train.py {broken.folder}" in out
    assert broken.checkpoint("last").place == "in epoch 2, after batch 3"
    path.write_bytes(content)
    same(whole, train(config, resume=True))


@pytest.mark.parametrize("settings", [EACH_TIME, FOLDER], ids=["each time", "in memory"])
def test_unreadable_images_are_left_out_and_counted_where_that_is_allowed(pictures, monkeypatch,
                                                                          settings):
    at_start, later = a_file_of(pictures, 0), a_file_of(pictures, 1)
    at_start.write_bytes(b"no image")
    config = load_config("../tiny.yaml", {**settings, "DATA.DATASET.skip_unreadable": True,
                                          "DATA.DATASET.mean": [0.3] * 3, "DATA.DATASET.std": [0.2] * 3})
    trainer = build_trainer(config)
    assert trainer.data.left_out == (str(at_start.relative_to(pictures.parent).as_posix()).join(["../", ""]),)
    assert len(trainer.data.train) == 119
    later.unlink()
    seen = []

    def see(trainer, batch):
        seen.append(batch.index.tolist())
        assert batch.weight == 1.0  # the gradient is the mean over the images there are

    before_each_step(monkeypatch, see)
    run = train(config, parts=trainer.parts)
    assert sum(map(len, seen)) == 2 * 118 and len(seen) == 2 * 4
    log = (run.folder / "train.log").read_text()
    found = re.findall(r"left out   (\d+) image files? that cannot be read: (.*)", log)
    assert [(count, Path(name).name, Path(name).parent.name) for count, name in found] == [
        ("1", path.name, path.parent.name) for path in (at_start, later)]
    assert run.metrics[-1]["train/accuracy"] * 118 % 1 == pytest.approx(0, abs=1e-9)


def test_test_images_that_vanish_leave_honest_predictions(pictures):
    config = load_config("../tiny.yaml", {**EACH_TIME, "DATA.DATASET.skip_unreadable": True})
    parts = build_trainer(config).parts
    victim = sorted(pictures.glob("test/*/*.png"))[5]
    victim.unlink()
    run = train(config, parts=parts)
    assert len(run.predictions.true) == 11 and 5 not in run.predictions.index
    assert f"{victim.parent.name}/{victim.name}" in (run.folder / "train.log").read_text()


def test_a_drive_that_is_gone_is_an_error_all_the_same(pictures, monkeypatch):
    config = load_config("../tiny.yaml", {**EACH_TIME, "DATA.DATASET.skip_unreadable": True})
    at_step(monkeypatch, 2, lambda: shutil.move(pictures, "gone"))
    with pytest.raises(DataError, match="no image of a whole batch can be read"):
        train(config)
    assert newest().checkpoint("last").place == "in epoch 1, after batch 2"


DEADLY = """
import multiprocessing
import os
import signal
from pathlib import Path

from cvkit import TRANSFORMS


@TRANSFORMS.register()
class Deadly:
    def __call__(self, image):
        if Path("trap").exists() and multiprocessing.parent_process() is not None:
            Path("trap").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return image
"""


def test_a_worker_that_dies_is_told_and_nothing_is_lost(pictures, monkeypatch, start_method):
    trap = Path("trap")
    Path("deadly.py").write_text(DEADLY)

    config = load_config("../tiny.yaml", {
        **EACH_TIME, "IMPORTS": ["deadly.py"], "DATA.WORKERS": 1, "DATA.TRAIN_TRANSFORMS": [{"NAME": "Deadly"}]})
    whole = train(config)
    with monkeypatch.context() as patched:
        at_step(patched, 2, trap.touch)
        with pytest.raises(DataError) as caught:
            train(config)
    assert "a process that makes batches died: DataLoader worker" in str(caught.value)
    assert "DATA.WORKERS with a smaller number" in str(caught.value)
    same(whole, train(config, resume=True))


def test_a_worker_that_dies_while_the_model_computes_is_told_as_well(pictures, monkeypatch):
    def kill():
        (worker,) = set(multiprocessing.active_children()) - others
        worker.kill()
        for _ in range(600):  # torch says so in one of them, in the middle of a step
            time.sleep(0.1)

    config = load_config("../tiny.yaml", {**EACH_TIME, "DATA.WORKERS": 1, "TRAIN.CHECKPOINT_EVERY": "1 step"})
    whole = train(config)
    others = set(multiprocessing.active_children())  # that another test may have left
    with monkeypatch.context() as patched:
        at_step(patched, 3, kill)
        with pytest.raises(DataError, match=r"a process that makes batches died: DataLoader worker \(pid \d+\) is killed"):
            train(config)
    same(whole, train(config, resume=True))


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError(),
                                   FileNotFoundError(2, "no socket")])
def test_a_worker_that_dies_while_a_batch_is_on_its_way_is_told_as_well(pictures, monkeypatch, error):
    """Then the connection to it breaks, before torch has looked whether it lives."""
    fetch = _MultiProcessingDataLoaderIter._next_data

    def broken(self):
        if self._rcvd_idx < 2:
            return fetch(self)
        if is_dead:
            # As if it had been killed while it asked whether it shall end.
            self._workers_done_event._cond.acquire()
            self._workers[0].kill()
        raise error

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", broken)
    config = load_config("../tiny.yaml", {**EACH_TIME, "DATA.WORKERS": 1})
    for is_dead, expected in ((True, DataError), (False, type(error))):
        # torch's handler of SIGCHLD may speak first, which says the signal.
        words = (r"a process that makes batches died: DataLoader worker \(pid \d+\) "
                 r"(ended with exit code -9|is killed by signal: Killed)")
        with pytest.raises(expected, match=words if is_dead else None):
            train(config)


# -- disk ------------------------------------------------------------------------------------------


def _train_on_a_full_disk(folder, limit, answer) -> None:
    """Train until, in the third epoch, no file can grow any more; send what was said."""
    os.chdir(folder)
    torch.set_num_threads(1)
    # The system refuses what is beyond this, as it does when a disk is full.
    at_step(pytest.MonkeyPatch(), 11, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            train(load_config("tiny.yaml", {"TRAIN.EPOCHS": 4}))
        except (RunError, CheckpointError) as error:
            print(error)
    answer.send(out.getvalue())


@pytest.mark.parametrize("room", ["of a part of a checkpoint", "of nothing"])
def test_a_full_disk_loses_nothing(tiny, processes, room):
    config = load_config(tiny, {"TRAIN.EPOCHS": 4})
    whole = train(config)
    shutil.move("runs", "whole")
    whole = Run("whole" / whole.folder.relative_to("runs"))
    size = (whole.checkpoints / "last.pt").stat().st_size
    limit = size // 2 if room == "of a part of a checkpoint" else 0
    reading, answer = processes.Pipe(duplex=False)
    process = processes.Process(target=_train_on_a_full_disk, args=(os.getcwd(), limit, answer))
    process.start()
    said = reading.recv()
    process.join()
    broken = newest()
    named = "last.pt" if room == "of a part of a checkpoint" else "metrics.jsonl"
    assert re.search(rf"cannot write {broken.folder}/\S*{named}: .*File too large", said)
    assert "Is the disk full" in said
    if room != "of nothing":
        assert f"Go on from the last checkpoint: python tools/train.py {broken.folder}" in said
    assert {path.name for path in broken.checkpoints.iterdir()} == {"last.pt", "best.pt", "previous.pt"}
    assert broken.checkpoint("last").epoch == 2
    same(whole, train(config, resume=True))


def test_a_disk_without_room_for_one_byte(tmp_path):
    checkpoint = Checkpoint({"weight": torch.zeros(1000)}, "", [], [], [], [], 1, {}, "test")
    before = tmp_path / "last.pt"
    checkpoint.save(before)
    content = before.read_bytes()
    os.symlink("/dev/full", tmp_path / "last.pt.part")  # where each write fails with ENOSPC
    with pytest.raises(CheckpointError, match=re.escape(os.strerror(errno.ENOSPC))):
        checkpoint.save(before, tmp_path / "previous.pt")
    assert before.read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} & {"last.pt.part", "previous.pt"} == set()


@pytest.fixture
def no_rights():
    """Be a user whom file rights bind, and let that user into a folder."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    is_root = os.geteuid() == 0
    yield folder, (lambda: os.seteuid(65534)) if is_root else (lambda: None)
    if is_root:
        os.seteuid(0)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_run_folder_is_refused_before_anything_is_computed(quick, no_rights,
                                                                               monkeypatch):
    folder, become_nobody = no_rights
    config = load_config(quick, {"OUTPUT_DIR": str(folder / "runs")})
    data = build_data(config)  # read while it may be
    monkeypatch.setattr("cvkit.runs.experiment.build_data", lambda config: data)
    run = train(config)
    for path in sorted(folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    longer = load_config(quick, {"OUTPUT_DIR": str(folder / "runs"), "TRAIN.EPOCHS": 3})
    elsewhere = load_config(quick, {"OUTPUT_DIR": str(folder / "runs" / "tiny" / "deeper")})
    become_nobody()
    with pytest.raises(RunError, match=rf"cannot write {run.folder}/.*Permission denied"):
        train(longer, resume=True)
    with pytest.raises(RunError, match=r"cannot write a run folder into .*Permission denied"):
        train(elsewhere)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- processes, clocks, memory -----------------------------------------------------------------------


def _hold(folder, path, ready):
    os.chdir(folder)
    with Run(path).lock():
        ready.set()
        time.sleep(60)


def test_a_second_process_on_a_run_folder_is_refused(quick, processes):
    run = train(load_config(quick))
    ready = processes.Event()
    holder = processes.Process(target=_hold, args=(os.getcwd(), str(run.folder), ready))
    holder.start()
    assert ready.wait(30)
    longer = load_config(quick, {"TRAIN.EPOCHS": 3})
    before = {path: path.read_bytes() for path in run.folder.rglob("*.*") if path.name != ".lock"}
    with pytest.raises(RunError, match=rf"is being trained by process {holder.pid} on "):
        train(longer, resume=True)
    assert before == {path: path.read_bytes() for path in run.folder.rglob("*.*")
                      if path.name != ".lock"}
    holder.kill()  # however it ends, the lock ends with it
    holder.join()
    assert len(train(longer, resume=True).metrics) == 3
    assert not (run.folder / ".lock").exists()


def test_a_clock_that_jumps_changes_nothing(quick, monkeypatch):
    config = load_config(quick, {"TRAIN.EPOCHS": 3, "TRAIN.CHECKPOINT_EVERY": "1 minutes"})
    whole = train(config)
    real, jumps = time.time, [0.0]
    started = time.monotonic()
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: real() + jumps[0])
        at_step(patched, 3, lambda: jumps.append(jumps.pop() - 86400))
        at_step(patched, 8, lambda: jumps.append(jumps.pop() + 86400 * 365))
        run = train(config)
    took = time.monotonic() - started
    assert all(0 < epoch["seconds"] < took for epoch in run.metrics) and run.seconds < took
    same(whole, run)


def test_a_run_begun_when_the_clock_was_ahead_is_not_written_into(quick, monkeypatch):
    from datetime import datetime

    import cvkit.runs.folder

    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2030, 1, 1)

    monkeypatch.setattr(cvkit.runs.folder, "datetime", Stopped)
    first, second = (train(load_config(quick, {"TRAIN.EPOCHS": 1})) for _ in range(2))
    assert [run.folder.name for run in (first, second)] == ["2030-01-01_00-00-00",
                                                             "2030-01-01_00-00-00_2"]
    assert find_runs("runs")[-1] == second.folder


def test_when_to_save_inside_an_epoch(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert not any(CheckpointInterval("epoch").is_due(step) for step in range(1, 100))
    assert [step for step in range(1, 10) if CheckpointInterval("3 steps").is_due(step)] == [3, 6, 9]
    pace = CheckpointInterval("10 min")
    now[0] = 599.0
    assert not pace.is_due(1)
    now[0] = 600.0
    assert pace.is_due(2)
    pace.restart()
    assert not pace.is_due(3)


def test_an_error_that_is_told_holds_no_model_and_no_images(quick, monkeypatch):
    """As in a notebook, which keeps the last error while the next training runs."""
    made = []
    monkeypatch.setattr(TrainingState, "train_mode", lambda self: made.extend(
        map(weakref.ref, (self, self.model))))
    monkeypatch.setattr(Trainer, "save_or_stop", lambda self: (_ for _ in ()).throw(
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")))
    with pytest.raises(RunError, match="out of memory on") as told:
        train(load_config(quick))
    gc.collect()
    assert told.value.__cause__.__traceback__ and made and not any(ref() for ref in made)


def test_what_the_caller_is_dealing_with_and_errors_of_others_keep_their_frames():
    @frees_on_error
    def fail(error):
        raise error from (error if isinstance(error, RunError) else None)

    def frame_of(error):
        trace = error.__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        return trace.tb_frame.f_locals

    def own():
        held = 7
        return 1 / (held - 7)

    with pytest.raises(RunError) as told:
        try:
            own()
        except ZeroDivisionError as error:
            callers = error
            fail(RunError("its own cause"))
    assert frame_of(callers)["held"] == 7 and frame_of(told.value) == {}
    with pytest.raises(KeyError) as kept:
        fail(KeyError("a fault, for a debugger"))
    assert "error" in frame_of(kept.value)


@pytest.mark.parametrize("start_method", ["fork"], indirect=True)
def test_shared_memory_that_is_full_is_told_and_not_waited_for(pictures, monkeypatch, start_method):
    """A container has 64 MB of it, unless asked for more; torch prints so and goes on without the batch."""
    def fail(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on "
                           "device (28)")

    config = load_config("../tiny.yaml", {**EACH_TIME, "DATA.WORKERS": 1})
    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(DataError, match="no shared memory is left for what workers make: unable to"):
        train(config)


def test_what_torch_cannot_do_deterministically_is_told(quick, monkeypatch):
    class Scatter(torch.autograd.Function):
        @staticmethod
        def forward(context, values):
            return values.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient.put_(torch.zeros(1, dtype=torch.int64), torch.zeros(1))

    forward = nn.Flatten.forward
    monkeypatch.setattr(nn.Flatten, "forward", lambda self, values: Scatter.apply(forward(self, values)))
    with pytest.raises(RunError, match="DETERMINISTIC true asks for what torch does not have: put_ does not have a "
                                       "deterministic implementation on ") as told:
        train(load_config(quick, {"DETERMINISTIC": True}))
    assert told.value.hint == "DETERMINISTIC false; the seed fixes all else."


def of_onednn():
    raise RuntimeError("could not create a primitive")


# No limited address space: where one ends, libraries below torch may die without a word.
@pytest.mark.parametrize("fail", [lambda: torch.empty(2**60), of_onednn], ids=["torch", "onednn"])
def test_out_of_memory_is_told_with_a_batch_that_fits(tiny, monkeypatch, fail):
    forward = nn.Conv2d.forward

    def limited(self, images):
        if len(images) > 100:
            fail()
        return forward(self, images)

    monkeypatch.setattr(nn.Conv2d, "forward", limited)
    options = {"DATA.LIMIT": 512, "DATA.BATCH_SIZE": 512, "TRAIN.EPOCHS": 1}
    with pytest.raises(RunError, match="out of memory on .*, training on batches of 512") as told:
        train(load_config(tiny, options))
    assert isinstance(told.value.__cause__, RuntimeError)
    assert told.value.hint == ("64 fit: DATA.BATCH_SIZE 64 TRAIN.ACCUMULATE 8 makes steps of "
                               "512 images.")
    advised = {**options, "DATA.BATCH_SIZE": 64, "TRAIN.ACCUMULATE": 8}
    with pytest.raises(RunError, match="out of memory on .*, evaluating batches of 256") as told:
        train(load_config(tiny, {**advised, "DATA.EVAL_BATCH_SIZE": 256}))
    assert told.value.hint.startswith("Try DATA.EVAL_BATCH_SIZE 64;")
    assert len(train(load_config(tiny, {**advised, "DATA.EVAL_BATCH_SIZE": 64})).metrics) == 1


def test_where_not_even_one_image_fits_an_error_that_may_be_another_is_not_called_one_of_memory(
        tiny, monkeypatch):
    first, second = (build_trainer(load_config(tiny)) for _ in range(2))
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, images: of_onednn())
    with pytest.raises(RuntimeError, match="could not create a primitive"):
        first.train()
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, images: torch.empty(2**60))
    with pytest.raises(RunError, match="out of memory") as told:
        second.train()
    assert told.value.hint == "Not even one image fits: take a smaller model or image."


def test_what_would_fit_is_found_by_trying():
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    assert largest_that_fits(attempt, 128) == 16 and tried == [64, 32, 16]
    assert largest_that_fits(lambda size: (_ for _ in ()).throw(MemoryError()), 8) == 0
    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits(lambda size: (_ for _ in ()).throw(RuntimeError("shapes")), 8)
