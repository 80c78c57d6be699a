"""Several processes train what one does. Here they are started directly, or by torchrun itself."""

import faulthandler
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, paint
from PIL import Image

from cvkit.config import load_config
from cvkit.errors import ConfigError
from cvkit.evaluation.run_evaluation import evaluate
from cvkit.runs.finding import find_runs
from cvkit.runs.folder import Run
from cvkit.session import build_trainer, train
from cvkit.system import distributed
from cvkit.training.trainer import Trainer

# A model without batch statistics, so that parts of a batch compute what the whole does; and noisy
# images, for on even areas all units of a layer lie at one point of ReLU, and rounding decides.
GROUPS = {"MODEL.norm": "group", "MODEL.groups": 2, "TRAIN.PRECISION": "fp32",
          "OPTIMIZER.lr": 3e-4, "TRAIN.EPOCHS": 2, "DATA.LIMIT": 0,
          "DATA.DATASET": {"NAME": "ImageFolder", "root": "../painted"},
          "DATA.TRAIN_TRANSFORMS": [{"NAME": "HorizontalFlip"}]}


@pytest.fixture
def noisy(tiny):
    """The tiny config, and noisy images: 150 train, 33 test."""
    random = np.random.default_rng(0)
    paint(Path("painted"), "train", 50, random)
    paint(Path("painted"), "test", 11, random)
    for path in Path("painted").rglob("*.png"):
        pixels = np.asarray(Image.open(path)).astype(int) + random.integers(-40, 40, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return tiny


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def _rank(folder, settings, resume, variables) -> None:
    """One of several processes, each in a folder of its own: only the first needs one."""
    rank = variables["RANK"]
    os.makedirs(f"{folder}/{rank}", exist_ok=True)
    os.chdir(f"{folder}/{rank}")
    sink = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.environ.update(variables)
    faulthandler.enable()
    multiprocessing.set_start_method("fork", force=True)  # of its own workers, as usual on Linux
    torch.set_num_threads(1)
    run = train(load_config(f"{folder}/tiny.yaml", settings), resume)
    assert (run is not None) == (rank == "0")


def variables_of(rank, count, port):
    """Return what torchrun would set for a process."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}


def begin(processes, count, settings, resume=False):
    port = free_port()
    started = []
    for rank in range(count):
        started.append(processes.Process(target=_rank, args=(
            os.getcwd(), settings, resume and rank == 0, variables_of(rank, count, port))))
        started[-1].start()
    return started


def end(started) -> Run:
    for process in started:
        process.join(120)
    said = "\n".join(Path(f"{rank}/out.txt").read_text() for rank in range(len(started)))
    assert [process.exitcode for process in started] == [0] * len(started), said
    for rank in range(1, len(started)):  # only the first process writes, and speaks
        assert [path.name for path in Path(str(rank)).iterdir()] == ["out.txt"]
        lines = Path(f"{rank}/out.txt").read_text().splitlines()
        of_torch = re.compile(r"\[Gloo\] |.* reducer\.cpp:\d+\] Warning: find_unused_parameters=True")
        assert [line for line in lines if not of_torch.match(line)] == []
    return Run(find_runs("0/runs")[-1])


def alone(settings) -> Run:
    """Train in this process, in a folder of its own."""
    os.makedirs("alone", exist_ok=True)
    os.chdir("alone")
    run = train(load_config("../tiny.yaml", settings))
    os.chdir("..")
    return Run("alone" / run.folder)


def agree(ours: Run, theirs: Run, tolerance=1e-5) -> None:
    """Assert that all that was measured agrees, and that no test image is missing or twice."""
    assert len(ours.metrics) == len(theirs.metrics)
    for one, several in zip(ours.metrics, theirs.metrics):
        assert one.keys() == several.keys()
        assert np.allclose(one["rates"], several["rates"])
        assert one.get("lr_mult") == several.get("lr_mult")
        for name in one.keys() - {"seconds", "images_per_second", "rates", "lr_mult"}:
            assert several[name] == pytest.approx(one[name], abs=tolerance, nan_ok=True), name
    for part in ("index", "true"):
        assert np.array_equal(getattr(ours.predictions, part), getattr(theirs.predictions, part))
    assert np.abs(ours.predictions.probabilities - theirs.predictions.probabilities).max() < (
        10 * tolerance)
    assert theirs.predictions.loss == pytest.approx(ours.predictions.loss, abs=tolerance)


def vector(state) -> torch.Tensor:
    """Return all weights in a row."""
    return torch.cat([value.double().flatten() for value in state.values()])


VARIANTS = {
    # The last batch has two images for three processes.
    "short": (3, {"DATA.LIMIT": 130}),
    "everything": (2, {
        "TRAIN.ACCUMULATE": 2, "TRAIN.CLIP_GRAD_NORM": 0.5, "TRAIN.EMA_DECAY": 0.9,
        "TRAIN.WARMUP_EPOCHS": 0.5, "DATA.VAL_FRACTION": 0.2, "TRAIN.CHECKPOINT_EVERY": "1 step",
        "SCHEDULER": {"NAME": "ReduceLROnPlateau", "patience": 0},
        "METRICS": [{"NAME": "TopKAccuracy", "k": 3}, {"NAME": "PerClassAccuracy"},
                    {"NAME": "F1Score"}, {"NAME": "AUROC"}]}),
    # The last batch has one image: none for two of the processes, and none to mix it with.
    "mixed, one left": (3, {"DATA.LIMIT": 129, "DATA.TRAIN_TRANSFORMS": [
        {"NAME": "MixUp", "p": 0.5}, {"NAME": "CutMix", "p": 0.5}, {"NAME": "HorizontalFlip"}]}),
    "a loss that learns": (2, {"LOSS": {"NAME": "Scaled"}, "IMPORTS": ["../own_loss.py"],
                               "TRAIN.ACCUMULATE": 2}),
    "unfrozen in the second epoch": (2, {
        "TRAIN.FREEZE": ["backbone"], "TRAIN.UNFREEZE": {"2": ["layer4"], "3": "all"}, "TRAIN.EPOCHS": 3,
        "TRAIN.EMA_DECAY": 0.9, "OPTIMIZER.groups": [{"match": "layer*", "lr_mult": 0.3}]}),
    "whitened, with lookahead": (2, {
        "MODEL": {"NAME": "Sequential", "layers": [
            {"NAME": "WhiteningConv2d", "name": "whiten"}, {"NAME": "GELU"},
            {"NAME": "Conv2d", "out_channels": 8, "kernel_size": 3}, {"NAME": "GroupNorm", "num_groups": 4},
            {"NAME": "AdaptiveAvgPool2d", "output_size": 4}, {"NAME": "Flatten"}, {"NAME": "Linear"}]},
        "DATA.TRAIN_TRANSFORMS": [{"NAME": "AlternatingFlip"}, {"NAME": "Translate", "limit": 2}],
        "TRAIN.FREEZE_FROM": {"2": ["whiten"]}, "TRAIN.EMA_DECAY": 0.5, "TRAIN.EMA_EVERY": 2,
        "TRAIN.EMA_LOOKAHEAD": True, "SCHEDULER": {"NAME": "Triangular"}, "TTA": [{"NAME": "HorizontalFlip"}]}),
    "workers": (2, {"DATA.PIPELINE": "albumentations", "DATA.WORKERS": 1,
                    "DATA.TRAIN_TRANSFORMS": []}),
}


LOSS = """
import torch
from cvkit import LOSSES

@LOSSES.register()
class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.unused = (torch.nn.Parameter(torch.ones(())) for _ in range(2))

    def forward(self, logits, labels):
        return torch.nn.functional.cross_entropy(self.scale * logits, labels)
"""


@pytest.mark.parametrize("variant", VARIANTS)
def test_several_processes_train_what_one_does(processes, noisy, variant):
    count, settings = VARIANTS[variant]
    Path("own_loss.py").write_text(LOSS)
    settings = {**{key: value for key, value in GROUPS.items() if not (
        key.startswith("MODEL.") and "MODEL" in settings)}, **settings}
    started = begin(processes, count, settings)
    whole = alone(settings)
    several = end(started)
    agree(whole, several)
    assert several.config == whole.config
    os.chdir("alone")
    first = vector(build_trainer(load_config("../tiny.yaml", settings)).state.model.state_dict())
    os.chdir("..")
    one, many = vector(whole.checkpoint().model), vector(several.checkpoint().model)
    if whole.checkpoint().loss:
        ours, theirs = (float(run.checkpoint().loss["scale"]) for run in (whole, several))
        assert ours != 1 and theirs - 1 == pytest.approx(ours - 1, rel=0.01)
    # Of what training changed; kernels without vector instructions differ by 0.2 % of it.
    assert (many - one).norm() < 0.01 * (one - first).norm()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"DATA.SAMPLER": {"NAME": "balanced"}, "DATA.PIPELINE": "albumentations"},
    {"DATA.SAMPLER": {"NAME": "repeat_factor", "threshold": 0.9},
     "LOSS": {"NAME": "FocalLoss", "weight": "balanced"}}], ids=str)
def test_several_processes_train_on_uneven_classes_what_one_does(processes, noisy, settings):
    for path in sorted(Path("painted/train/red").iterdir())[5:]:
        path.unlink()
    settings = {**GROUPS, "DATA.TRAIN_TRANSFORMS": [], **settings}
    started = begin(processes, 2, settings)
    whole = alone(settings)
    agree(whole, end(started))


def _meet(rank, ports) -> None:
    for port in ports:
        os.environ.update(variables_of(rank, 2, port))
        distributed.start(torch.device("cpu"))
        assert distributed.all_gather_objects(rank) == [0, 1]
        distributed.stop()


def test_processes_that_are_done_can_part(processes):
    """Of twenty partings torch 2.7 does not come out of one or more: it waits for itself."""
    ports = [free_port() for _ in range(25)]
    started = [processes.Process(target=_meet, args=(rank, ports)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        process.kill()
        process.join()
    assert [process.exitcode for process in started] == [0, 0]


def test_a_learning_rate_is_looked_for_together(processes, noisy):
    settings = {**GROUPS, "SCHEDULER": {"NAME": "OneCycleLR", "max_lr": "find"}}
    run = end(begin(processes, 2, settings))
    # At the highest rates rounding decides how it diverges: equal to one process's it is not.
    assert 1e-4 < run.config.SCHEDULER.max_lr == run.range_test.suggestion < 1
    assert len(run.metrics) == 2


def test_parameters_without_gradients_are_no_obstacle(processes, noisy):
    Path("own.py").write_text(
        "from torch import nn\n"
        "from cvkit import MODELS\n\n"
        "@MODELS.register()\n"
        "class Partly(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.used, self.unused = nn.Linear(3, num_classes), nn.Linear(3, 3)\n"
        "    def forward(self, images):\n"
        "        return self.used(images.mean((2, 3)))\n")
    settings = {**{key: value for key, value in GROUPS.items() if not key.startswith("MODEL")},
                "MODEL": {"NAME": "Partly"}, "IMPORTS": [str(Path("own.py").resolve())]}
    assert len(end(begin(processes, 2, settings)).metrics) == 2


SKIPS = """
import os, time
import torch
from torch import nn
from cvkit import MODELS
from cvkit.system import distributed

@MODELS.register()
class SkipsByChance(nn.Module):
    def __init__(self, num_classes, stops=False, late=False):
        super().__init__()
        self.first, self.second = (nn.Linear(3 * 32 * 32, 8) for _ in range(2))
        self.fc, self.steps = nn.Linear(8, num_classes), 0
        self.stops, self.late = stops, late

    def forward(self, images):
        self.steps += self.training
        if self.stops and self.steps == 3 and torch.is_grad_enabled() and os.environ["RANK"] == "1":
            time.sleep(30)
        x = images.flatten(1)
        y = self.first(x)
        if not self.training or (self.steps < 4 if self.late else torch.rand(()) < 0.5):
            y = y + self.second(x)
        return self.fc(y)

distributed._TIMEOUT = __import__("datetime").timedelta(seconds=SECONDS)
"""


def skipping(seconds=60, **arguments):
    Path("own.py").write_text(SKIPS.replace("SECONDS", str(seconds)))
    return {**{key: value for key, value in GROUPS.items() if not key.startswith("MODEL")},
            "MODEL": {"NAME": "SkipsByChance", **arguments}, "IMPORTS": ["../own.py"]}


def test_a_model_that_leaves_parts_out_by_chance_is_trained_with_the_key(processes, noisy):
    run = end(begin(processes, 2, {**skipping(), "TRAIN.UNUSED_PARAMETERS": True}))
    assert len(run.metrics) == 2 and run.metrics[1]["train/loss"] < run.metrics[0]["train/loss"]


@pytest.mark.parametrize("late, is_trained", [(False, True), (True, False)])
def test_without_the_key_it_is_trained_or_told_to_set_it(processes, noisy, late, is_trained):
    started = begin(processes, 2, skipping(late=late))
    for process in started:
        process.join(90)
    assert all(process.exitcode is not None for process in started)
    said = Path("0/out.txt").read_text() + Path("1/out.txt").read_text()
    codes = [process.exitcode for process in started]
    if is_trained:  # as one of the steps that were tried left a part out
        assert codes == [0, 0], said
    else:
        assert all(codes), said
        assert "TRAIN.UNUSED_PARAMETERS true allows for that" in said, said


OWN = """
import os
import numpy as np
from torch import nn
from torch.nn import functional as F
from cvkit import DATASETS, LOSSES, MODELS, ImageData, ImageSet

class Flat(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, num_classes)

    def forward(self, images):
        return self.fc(images.flatten(1))

MODELS.register("Flat")(Flat)

@MODELS.register()
class PairInTraining(Flat):
    def forward(self, images):
        logits = super().forward(images)
        return (logits, images) if self.training else logits

@LOSSES.register()
class HardestTwelve(nn.Module):
    def forward(self, logits, labels):
        return F.cross_entropy(logits, labels, reduction="none").topk(12).values.mean()

built = [0]

@DATASETS.register()
def drawn_again_in_one():
    built[0] += 1
    if os.environ["RANK"] == "1" and built[0] == 2:
        raise OSError("the disk is gone")
    return drawn_by_rank(0)

@DATASETS.register()
def drawn_by_rank(rank=os.environ["RANK"]):
    order = np.random.default_rng(int(rank)).permutation(96)
    images = np.random.default_rng(0).integers(0, 256, (96, 32, 32, 3)).astype(np.uint8)[order]
    labels = (np.arange(96) % 4)[order]
    train, test = ImageSet.of(images[:64], labels[:64]), ImageSet.of(images[64:], labels[64:])
    return ImageData("abcd", train, test, 3, (32, 32), (0.5,) * 3, (0.29,) * 3)
"""


@pytest.mark.parametrize("part, expected", [
    ({"DATA.DATASET": {"NAME": "drawn_by_rank"}}, "data set drawn_by_rank has other images, labels or another "
                                                   "order in each process"),
    ({"DATA.DATASET": {"NAME": "drawn_again_in_one"}}, "cannot be built a second time: the disk is gone"),
    ({"MODEL": {"NAME": "PairInTraining"}}, "model PairInTraining returns a tuple in training"),
    ({"LOSS": {"NAME": "HardestTwelve"}}, None)])
def test_parts_of_one_s_own_are_refused_by_name_or_trained(processes, noisy, part, expected):
    Path("own.py").write_text(OWN)
    settings = {**{key: value for key, value in GROUPS.items() if not key.startswith("MODEL")},
                "MODEL": {"NAME": "Flat"}, "DATA.BATCH_SIZE": 32, "DATA.LIMIT": 64, "IMPORTS": ["../own.py"], **part}
    started = begin(processes, 2, settings)
    if expected is None:
        assert len(end(started).metrics) == 2
        return
    for process in started:
        process.join(60)
    assert all(process.exitcode for process in started)
    assert expected in Path("0/out.txt").read_text()
    assert not Path("0/runs").exists()


@pytest.mark.parametrize("words", [
    "Application timeout caused pair closure", "Connection closed by peer [127.0.0.1]:1234",
    "[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 4000ms for recv operation"])
def test_all_that_torch_says_of_a_lost_process_is_known(monkeypatch, words):
    monkeypatch.setattr(distributed, "_store", object())
    assert distributed.is_loss_of_contact(RuntimeError(words))
    assert not distributed.is_loss_of_contact(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


OTHER_WEIGHTS = """
import os, torch
from torch import nn
from cvkit import MODELS

@MODELS.register()
class Drawn(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))
        own = torch.Generator().manual_seed(int(os.environ["RANK"]))
        with torch.no_grad():
            self[1].weight.copy_(0.01 * torch.randn(self[1].weight.shape, generator=own))
"""


def test_averages_begin_with_the_same_weights_in_all_processes(processes, noisy):
    """Also where a model draws its weights by a generator of its own, other ones in each process."""
    Path("own.py").write_text(OTHER_WEIGHTS)
    settings = {key: value for key, value in GROUPS.items() if not key.startswith("MODEL")}
    run = end(begin(processes, 2, {**settings, "MODEL": {"NAME": "Drawn"}, "IMPORTS": ["../own.py"],
                                   "TRAIN.EMA_DECAY": 0.99}))
    os.environ["RANK"] = "0"
    try:
        assert evaluate(run, {"DATA.DATASET.root": "painted"}).loss == pytest.approx(run.metrics[-1]["test/loss"], rel=1e-4)
    finally:
        del os.environ["RANK"]


def test_a_process_that_waits_in_vain_says_so_and_ends(processes, noisy):
    """The other one does not answer; it is neither dead nor done."""
    started = begin(processes, 2, {**skipping(seconds=4, stops=True), "TRAIN.UNUSED_PARAMETERS": True})
    begun = time.monotonic()
    started[0].join(25)
    assert time.monotonic() - begun < 25 and started[0].exitcode
    started[1].kill()
    said = Path("0/out.txt").read_text()
    assert "process 0 lost contact with another one, which failed" in said, said


def test_a_process_without_an_image_so_far_goes_on(processes, noisy):
    """The last batch has three images for four processes."""
    settings = {**GROUPS, "DATA.BATCH_SIZE": 6, "DATA.LIMIT": 15, "TRAIN.EPOCHS": 2}
    run = end(begin(processes, 4, settings))
    assert run.metrics[-1]["train/accuracy"] * 15 % 1 == pytest.approx(0, abs=1e-9)
    from cvkit.evaluation.metrics import Mean

    empty = Mean()
    empty.update(torch.tensor(2.0), 0)
    assert empty.compute() == 0.0


def test_what_the_checkpoint_predicts_is_what_the_processes_predicted(processes, tiny):
    """Batch norms see a part of each batch in each process; one set of statistics counts."""
    run = end(begin(processes, 2, {"TRAIN.EPOCHS": 2, "TRAIN.PRECISION": "fp32", "TRAIN.EMA_DECAY": 0.5}))
    before = run.predictions.probabilities
    assert np.abs(evaluate(run).probabilities - before).max() < 1e-6


@pytest.mark.parametrize("count, then", [(1, 2), (3, 1)])
def test_a_run_goes_on_with_another_number_of_processes(processes, noisy, count, then):
    settings = {**GROUPS, "TRAIN.EPOCHS": 3, "TRAIN.CHECKPOINT_EVERY": "1 step",
                "SCHEDULER": {"NAME": "OneCycleLR"}}
    slow = {**settings, "METRICS": [], "DATA.EVAL_BATCH_SIZE": 1}
    started = begin(processes, count, slow)
    while not Path("0/runs").exists() or not find_runs("0/runs"):
        time.sleep(0.02)
    os.kill(started[-1].pid, signal.SIGTERM)  # any process: all stop after the same step
    for process in started:
        process.join(60)
        assert process.exitcode == 1  # here Python's own, for an uncaught KeyboardInterrupt
    run = Run(find_runs("0/runs")[-1])
    assert "Interrupted" in (run.folder / "train.log").read_text()
    assert run.checkpoint("last").epoch < 3
    for rank in range(3):
        Path(f"{rank}/out.txt").unlink(missing_ok=True)
    resumed = end(begin(processes, then, slow, resume=True))
    assert resumed.folder == run.folder
    agree(alone(settings), resumed)


def test_each_process_takes_its_part_of_every_batch():
    from cvkit.data.plan import EpochPlan

    for count, batch_size, size in ((150, 32, 2), (130, 32, 3), (7, 4, 4), (64, 64, 5)):
        orders = [EpochPlan(count, batch_size, True, 0, rank, size) for rank in range(size)]
        for number, whole in enumerate(orders[0].batch_sizes):
            places = [place for order in orders for place in range(count)[order.part(number)][
                :order.part_size(number)]]
            assert places == list(range(number * batch_size, number * batch_size + whole))
            assert all(len(range(count)[order.part(number)]) >= 1 for order in orders)


def test_what_processes_cannot_share_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 64)
    with pytest.raises(ConfigError, match=r"a batch of 32 cannot be shared by 64 processes"):
        build_trainer(load_config(tiny))
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(ConfigError, match=r"synchronises batch norms between GPUs only"):
        build_trainer(load_config(tiny, {"TRAIN.SYNC_BATCHNORM": True}))


def test_one_process_needs_none_of_it(tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # as clusters set it for ends of their own
    monkeypatch.setenv("RANK", "3")
    assert train(load_config(tiny, {"TRAIN.EPOCHS": 1})) is not None
    assert (distributed.size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    assert "torch.distributed.run" not in sys.modules


# -- torchrun ------------------------------------------------------------------------------------


def torchrun(*arguments, nodes=(), **options):
    command = [sys.executable, "-m", "torch.distributed.run", *nodes, str(ROOT / "tools/train.py"),
               *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)


def pairs(settings):
    return [part if isinstance(part, str) else json.dumps(part) for pair in settings.items()
            for part in pair]


@pytest.mark.slow
def test_two_machines_train_what_one_process_does(noisy):
    """Two of torchrun's agents meet on the loopback; the second has a folder of its own."""
    port = free_port()
    for folder in ("one", "other"):
        Path(folder).mkdir()
    machines = [torchrun(noisy, *pairs(GROUPS), cwd=folder, nodes=[
        "--nnodes=2", "--nproc-per-node=1", f"--node-rank={number}", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test"])
        for number, folder in enumerate(("one", "other"))]
    whole = alone(GROUPS)
    said = [machine.communicate(timeout=120)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    written = [folder for folder in ("one/runs", "other/runs") if Path(folder).exists()]
    assert len(written) == 1  # whichever of them the agents made the first process
    agree(whole, Run(find_runs(written[0])[-1]))


@pytest.mark.slow
def test_the_first_cause_is_shown_once(tmp_path):
    paint(tmp_path / "painted", "train", 40, np.random.default_rng(0))
    paint(tmp_path / "painted", "test", 4, np.random.default_rng(1))
    (tmp_path / "own.py").write_text(
        "import os\n"
        "from cvkit import TRANSFORMS\n"
        "from cvkit.errors import DataError\n\n"
        "@TRANSFORMS.register()\n"
        "class Breaks:\n"
        "    seen = 0\n"
        "    def __call__(self, image):\n"
        "        Breaks.seen += 1\n"
        "        if os.environ['RANK'] == '1' and Breaks.seen == 50:\n"
        "            raise DataError('the 50th image is broken')\n"
        "        return image\n")
    (tmp_path / "tiny.yaml").write_text(TINY)
    started = time.monotonic()
    job = torchrun(tmp_path / "tiny.yaml", "IMPORTS", f"[{tmp_path}/own.py]", "DATA.LIMIT", "0",
                   "DATA.DATASET", f"{{NAME: ImageFolder, root: {tmp_path}/painted}}",
                   "DATA.TRAIN_TRANSFORMS", "[{NAME: Breaks}]", "DATA.PIPELINE", "albumentations",
                   nodes=["--nproc-per-node=2"])
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 1 and time.monotonic() - started < 60
    assert re.findall("^error: .*", said, re.MULTILINE) == ["error: the 50th image is broken"]
    assert "own.py\", line" not in said and "Connection" not in said  # no traceback of ours


def test_a_mistake_in_the_config_is_said_once(tiny):
    job = torchrun(tiny, "TRAIN.EPOCH", "3", nodes=["--nproc-per-node=2"])
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 1 and said.count("error: ") == 1
    assert "Did you mean EPOCHS?" in said


def test_the_first_process_speaks_before_another_of_the_machine_ends_the_job(monkeypatch):
    """torchrun ends all as soon as one has ended."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    for name, value in variables_of(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    assert distributed.is_first_to_fail() and waited == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.is_first_to_fail() and len(waited) == 1 and waited[0] >= 10


def test_a_process_that_failed_is_not_ended_before_it_has_said_why(tiny, monkeypatch):
    def fail(self):
        monkeypatch.setattr(distributed, "size", lambda: 2)
        raise RuntimeError("something of torch")

    monkeypatch.setattr(Trainer, "train_epoch", fail)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RuntimeError, match="something of torch"):
            train(load_config(tiny))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_a_lost_process_ends_the_job_and_another_number_goes_on(noisy, processes):
    """The first one, which holds what the others meet at."""
    Path("0").mkdir()
    settings = {**GROUPS, "TRAIN.EPOCHS": 500, "TRAIN.CHECKPOINT_EVERY": "2 steps"}
    job = torchrun(noisy, *pairs(settings), cwd="0", nodes=["--nproc-per-node=2"])
    deadline = time.monotonic() + 60
    while not any(Path("0").rglob("metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True,
                             check=True).stdout.split()
    killed = time.monotonic()
    os.kill(int(workers[0]), signal.SIGKILL)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 1 and time.monotonic() - killed < 60
    assert "error: process 1 lost contact with another one" in said
    run = Run(find_runs("0/runs")[-1])
    epoch = run.last_whole_checkpoint().epoch  # it may have been killed between two renames
    assert epoch < 500
    again = {**settings, "TRAIN.EPOCHS": epoch + 1}
    resumed = end(begin(processes, 3, again, resume=True))
    assert [values["epoch"] for values in resumed.metrics] == list(range(1, epoch + 2))


@pytest.mark.slow
def test_torchrun_restarts_a_job_and_it_goes_on(noisy):
    """As on a cluster that gives the machine back: no one types the second command."""
    settings = {**GROUPS, "TRAIN.EPOCHS": 4, "TRAIN.CHECKPOINT_EVERY": "1 step"}
    Path("0").mkdir()
    job = torchrun(noisy, *pairs(settings), "--resume", "auto", cwd="0",
                   nodes=["--nproc-per-node=2", "--max-restarts=1"])
    deadline = time.monotonic() + 60
    while not any(Path("0").rglob("metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True,
                             check=True).stdout.split()
    os.kill(int(workers[1]), signal.SIGKILL)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0 and said.count("resumed    ") == 1, said
    (folder,) = find_runs("0/runs")
    agree(alone(settings), Run(folder), tolerance=1e-4)
