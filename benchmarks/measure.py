"""The measurements of `tools/benchmark.py`.

Images are noise: their content has no part in the time.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import albumentations as A
import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from benchmarks.bare import MEAN, STD, Bare
from benchmarks.classic import Classic
from benchmarks.limit import limit
from benchmarks.peers import peers
from cvkit.config import Config, check_components, load_config
from cvkit.data import ImageData, ImageSet, build_loaders
from cvkit.errors import ConfigError, RunError
from cvkit.evaluation.metrics import build_metrics
from cvkit.evaluation.predict import predict
from cvkit.models import build_model
from cvkit.models.resnet import resnet18
from cvkit.registry import VISUALIZERS
from cvkit.runs.experiment import Experiment
from cvkit.session import build_trainer
from cvkit.system.device import describe
from cvkit.system.log import ProgressBar
from cvkit.system.text import suggest
from cvkit.training.trainer import Trainer
from cvkit.visualizers.cam_maps import cam_maps
from cvkit.visualizers.draw import figures_of

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from cvkit.runs.folder import Run
    from cvkit.runs.trained import Trained

MAIN, DIGITS = "configs/resnet18_cifar10.yaml", "configs/resnet18_digits.yaml"
Figures = dict[str, float]
Configure = Callable[..., Config]  # called with further "KEY", "VALUE", …


def noise(train: int, test: int = 1000) -> ImageData:
    """Return 32×32 images of noise in 10 classes."""
    random = np.random.default_rng(0)
    splits = [ImageSet.of(random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
                          np.arange(count) % 10) for count in (train, test)]
    return ImageData(tuple("abcdefghij"), *splits, 3, (32, 32), MEAN, STD)


def trainer_of(config: Config, data: ImageData) -> Trainer:
    """Return a trainer of a config on other images than the config's."""
    parts = Experiment(config)
    parts.data = data
    logging.getLogger("cvkit").setLevel(logging.WARNING)
    return build_trainer(config, parts)


def references(config: Config, data: ImageData, device: torch.device,
               precision: str) -> tuple[Bare, Classic]:
    """Return both references, on a config's model."""
    bare, plain = (build_model(config.MODEL, 10, (3, 32, 32)) for _ in range(2))
    bare = bare.to(device, memory_format=torch.channels_last)
    bare = torch.compile(bare) if config.TRAIN.COMPILE else bare
    train = data.train
    return (Bare(bare, train.images, train.labels, device, precision),
            Classic(plain, train.images, train.labels, device, config.DATA.BATCH_SIZE))


# -- measuring ---------------------------------------------------------------------------


def seconds(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Return how long some work takes, to the end of what it gave a GPU to do."""
    started = time.perf_counter()
    work()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def in_turns(works: dict[str, Callable[[], object]], device: torch.device | None = None,
             rounds: int = 3) -> dict[str, list[float]]:
    """Time several works by turns, after one round to warm up: what slows one slows the others."""
    taken = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            time_taken = seconds(work, device)
            if number:
                taken[name].append(time_taken)
    return taken


def speed(taken: dict[str, list[float]], name: str, to: str) -> float:
    """Return how many times as fast `name` is as `to`: the median over the rounds."""
    return median(b / a for a, b in zip(taken[name], taken[to]))


def step(configure: Configure) -> Figures:
    """Training, evaluation and input of the main config, against bare and classic."""
    config = configure("TRAIN.EPOCHS", "20")
    parts = Experiment(config)
    device, precision = parts.device, parts.precision
    count = config.DATA.BATCH_SIZE * (6 if device.type == "cpu" else 390)
    data = noise(count, count)
    trainer = trainer_of(config, data)
    test = trainer.loaders.test
    bare, classic = references(config, data, device, precision)
    taken = in_turns({
        "cvkit": trainer.train_epoch,
        "bare": lambda: bare.epoch(config.DATA.BATCH_SIZE),
        "classic": classic.epoch,
        "test": lambda: predict(trainer.state.model, test, trainer.state.loss,
                                build_metrics([], data.classes),
                                data.classes, precision, 0,
                                ProgressBar("", len(test), is_silent=True))},
        device)
    trained = count / median(taken["cvkit"])
    figures = {"cvkit trains (images/s)": trained,
               "cvkit evaluates (images/s)": count / median(taken["test"]),
               "cvkit / bare": speed(taken, "cvkit", "bare"),
               "cvkit / classic": speed(taken, "cvkit", "classic")}
    for backend in ("batched", "albumentations"):
        loader = build_loaders(configure("DATA.PIPELINE", backend, "DATA.WORKERS", "0"),
                               noise(12_800), device).train
        rate = 12_800 / median(in_turns({"": lambda: deque(loader, 0)}, device)[""])  # noqa: B023
        figures[f"{backend} input (images/s)"] = rate
        figures[f"{backend} input, part of a step (%)"] = 100 * trained / rate
    return figures


def freezing(configure: Configure) -> Figures:
    """Training of the last layer alone, and of the last stage with it, against that of all."""
    frozen = {"all": "[]", "head": "[backbone]", "head and last stage": "[backbone, '!layer4']"}
    trainers = {}
    for name, patterns in frozen.items():
        config = configure("TRAIN.EPOCHS", "20", "TRAIN.FREEZE", patterns)
        count = config.DATA.BATCH_SIZE * (3 if Experiment(config).device.type == "cpu" else 390)
        trainers[name] = trainer_of(config, noise(count, count))
    taken = in_turns({name: trainer.train_epoch for name, trainer in trainers.items()},
                     trainers["all"].state.device)
    return {f"{name} / all": speed(taken, name, "all") for name in frozen if name != "all"}


def growth(configure: Configure) -> Figures:
    """Time and memory for twice as many images."""
    config = configure("MODEL.width", "8", "TRAIN.EPOCHS", "20")
    device = Experiment(config).device
    count = config.DATA.BATCH_SIZE * (25 if device.type == "cpu" else 200)
    taken = in_turns({name: trainer_of(config, noise(size)).train_epoch
                      for name, size in (("once", count), ("twice", 2 * count))}, device)
    return {"time for twice the images": speed(taken, "once", "twice"),
            "memory for one image more (bytes; its pixels: 3,072)":
                1e6 * (peak_memory("cvkit", 120_000) - peak_memory("cvkit", 60_000)) / 60_000}


def memory(configure: Configure) -> Figures:
    """Peak memory (MB) with 60,000 images, all processes together, besides what bare takes."""
    bare = peak_memory("bare", 60_000)
    return {"bare (MB)": bare, **{
        f"cvkit, {words}: MB more than bare": peak_memory("cvkit", 60_000, *settings) - bare
        for words, settings in (
            ("batched", ()), *((f"albumentations, {workers} workers", (
                "DATA.PIPELINE", "albumentations", "DATA.WORKERS", str(workers)))
                for workers in (0, 2, 4)))}}


def peak_memory(what: str, images: int, *settings: str) -> float:
    """Return the peak memory, in MB, of a process with its workers that trains on some images.

    Looked at ten times a second.

    Raises:
        RunError: not on Linux, or the process failed.
    """
    if not _memory_of(os.getpid()):
        raise RunError("memory is measured on Linux only, from /proc",
                       hint="Name the other parts: step, growth, start, cam.")
    code = {"bare": _HOLD_BARE, "cvkit": _HOLD_CVKIT}[what]
    return peak_of(subprocess.Popen([sys.executable, "-c", code, str(images), *settings]))


def peak_of(child: subprocess.Popen) -> float:
    """Return the peak memory, in MB, of a process with its workers, when it has ended.

    Raises:
        RunError: it failed.
    """
    peak = 0.0
    while child.poll() is None:
        peak = max(peak, sum(map(_memory_of, _with_children(child.pid))))
        time.sleep(0.1)
    if child.returncode:
        raise RunError(f"measuring memory failed with exit code {child.returncode}")
    return peak


# What is measured: four steps of training on 5/6 of the images; of cvkit, a whole epoch's batches.
_HOLD_BARE = """
import sys
import numpy, torch
from benchmarks.bare import Bare
from cvkit.models.resnet import resnet18
count = int(sys.argv[1])
random = numpy.random.default_rng(0)
images = [random.integers(0, 256, (size, 32, 32, 3), dtype=numpy.uint8)
          for size in (count * 5 // 6, count // 6)]
labels = numpy.arange(len(images[0])) % 10
model = resnet18(width=8).to(memory_format=torch.channels_last)
Bare(model, images[0], labels, torch.device("cpu"), "fp32").epoch(steps=4)
"""
_HOLD_CVKIT = f"""
import sys
from benchmarks.measure import noise, trainer_of
from cvkit.config import load_config
from cvkit.training.step import train_step
count = int(sys.argv[1])
config = load_config({MAIN!r}, ["DEVICE", "cpu", "MODEL.width", "8", "TRAIN.PRECISION", "fp32",
                                *sys.argv[2:]])
trainer = trainer_of(config, noise(count * 5 // 6, count // 6))
for number, batch in enumerate(trainer.loaders.train):
    if number < 4:
        train_step(trainer.state, batch)
trainer.loaders.close()
"""


def _with_children(process: int) -> list[int]:
    found = [process]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has ended
                found += map(int, path.read_text(encoding="utf-8").split())
    return found


def _memory_of(process: int) -> float:
    """Return a process's memory in MB; of what it shares with others, its part."""
    with contextlib.suppress(OSError):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8")
        for line in rollup.splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6  # of KiB
    return 0.0


def start(configure: Configure) -> Figures:
    """What a user waits for before the first step (s), each in a process of its own."""
    first_step = ("import time; from cvkit import load_config; "
                  "from cvkit.session import build_trainer; from cvkit.training.step import "
                  "train_step; t = time.perf_counter(); "
                  f"trainer = build_trainer(load_config({DIGITS!r})); "
                  "train_step(trainer.state, next(iter(trainer.loaders.train))); "
                  "print(time.perf_counter() - t)")
    commands = {"tools/train.py --help": ["tools/train.py", "--help"],
                "a misspelt key": ["tools/train.py", DIGITS, "TRAIN.EPOCH", "3"],
                "a misspelt model": ["tools/train.py", DIGITS, "MODEL.NAME", "resnt18"],
                "import torch": ["-c", "import torch"], "import cvkit": ["-c", "import cvkit"],
                "import cvkit.session": ["-c", "import cvkit.session"]}

    def output(arguments: list[str]) -> str:
        return subprocess.run([sys.executable, *arguments], capture_output=True,
                              encoding="utf-8", errors="replace").stdout

    taken = in_turns({name: lambda arguments=arguments: output(arguments)
                      for name, arguments in commands.items()})
    return {**{f"{name} (s)": median(times) for name, times in taken.items()},
            "digits: first step after the imports (s)": median(
                float(output(["-c", first_step])) for _ in range(3))}


def cam(configure: Configure) -> Figures:
    """Maps of 20 images by ResNet-18 (layer4 kept at 8×8), for one class of each."""
    model = resnet18(strides=[1, 2, 2, 1]).eval()
    images, labels = torch.randn(20, 3, 32, 32), np.arange(20) % 10
    layers, methods = ["layer1", "layer2", "layer3", "layer4"], ["GradCAM", "GradCAMPlusPlus"]
    taken = in_turns({
        "library": lambda: GradCAM(model, [model.layer4])(
            images, [ClassifierOutputTarget(label) for label in labels]),
        "first": lambda: cam_maps(model, images, [labels], layers[:1], methods[:1]),
        "last": lambda: cam_maps(model, images, [labels], layers[-1:], methods[:1]),
        "all": lambda: cam_maps(model, images, [labels], layers, methods)})
    return {"library: layer4, GradCAM (s)": median(taken["library"]),
            "layer4, GradCAM / library": speed(taken, "last", "library"),
            "4 layers, 2 methods / library": speed(taken, "all", "library"),
            "4 layers, 2 methods / layer1, GradCAM": speed(taken, "all", "first"),
            "4 layers, 2 methods / layer4, GradCAM": speed(taken, "all", "last")}


def predict_pictures(configure: Configure) -> Figures:
    """Predicting 2,000 JPEGs of 96×96 pixels, from files to a CSV, by the main config's model."""
    # The memory that importing these takes is none of a training's.
    from benchmarks.pictures import plain_predictions
    from cvkit.data.scan import in_threads
    from cvkit.deployment.predict_files import predict_files
    from cvkit.evaluation.predictor import Predictor
    from cvkit.runs.checkpoint import Checkpoint
    from cvkit.system.cores import usable_cores

    config = configure()
    data, random = noise(2, 2), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"{number}.jpg") for number in range(2000)]
        for path in paths:
            # Of 12×12 pixels that differ, enlarged: about as long as a photograph's file.
            small = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            small.resize((96, 96), Image.Resampling.BICUBIC).save(path, quality=90)
        weights = build_model(config.MODEL, 10, (3, 32, 32)).state_dict()
        Checkpoint(model=weights, config=config.dump(), classes=list(data.classes), mean=list(MEAN),
                   std=list(STD), image_shape=[3, 32, 32], epoch=1, metrics={}, monitored="test",
                   images=data.facts).save(Path(folder, "best.pt"))
        logging.getLogger("cvkit").setLevel(logging.WARNING)
        predictor, table = Predictor(Path(folder, "best.pt")), Path(folder, "out.csv")
        member = predictor.members[0]
        session = exported_session(member, folder)
        pixels = random.integers(0, 256, (256, 32, 32, 3), dtype=np.uint8)
        taken = in_turns({
            "cvkit": lambda: predict_files(predictor, [folder], table, overwrite=True),
            "plain": lambda: plain_predictions(
                member.model, paths, data.classes, 32, member.batch_size, member.device,
                member.precision, table),
            "decoding": lambda: deque(in_threads(lambda place: member.reader.read(paths[place]),
                                                 range(len(paths)), "", usable_cores(), True), 0),
            "torch": lambda: predictor(pixels),
            "onnxruntime": lambda: session.run(None, {"images": pixels}),
        }, member.device)
    return {"cvkit predicts (files/s)": len(paths) / median(taken["cvkit"]),
            "cvkit / plain loop": speed(taken, "cvkit", "plain"),
            "decoding alone (files/s)": len(paths) / median(taken["decoding"]),
            "cvkit, part of decoding alone (%)": 100 * speed(taken, "cvkit", "decoding"),
            f"onnxruntime in fp32 on the CPU / torch in {member.precision}":
                speed(taken, "onnxruntime", "torch")}


def sweep(configure: Configure) -> Figures:
    """A sweep of 20 tiny trials on digits against the same trials in a loop, imports apart."""
    # The memory that importing these takes is none of a training's.
    from cvkit.config.load import load_sweep
    from cvkit.session import train
    from cvkit.sweep.launch import run_sweep
    from cvkit.system.log import screen

    rates = [round(0.01 * (place + 1), 2) for place in range(20)]
    tiny = ["MODEL.width", "8", "TRAIN.EPOCHS", "2", "DATA.LIMIT", "400"]
    with tempfile.TemporaryDirectory() as folder, screen.muted(), contextlib.redirect_stdout(
            io.StringIO()):
        file = Path(folder, "rates.yaml")
        file.write_text("_BASE_: cvkit://resnet18_digits.yaml\nSWEEP: {TRIALS: 20, SAMPLER: {NAME: "
                        f"GridSampler}}, SPACE: {{OPTIMIZER.lr: {rates}}}}}\n", encoding="utf-8")
        places = (os.path.join(folder, str(number)) for number in range(1000))
        taken = in_turns({
            "sweep": lambda: run_sweep(load_sweep(file, [*tiny, "OUTPUT_DIR", next(places)])),
            "loop": lambda: [train(load_config(DIGITS, [
                *tiny, "OPTIMIZER.lr", str(rate), "OUTPUT_DIR", next(places)])) for rate in rates]})
    return {"loop (s)": median(taken["loop"]), "sweep (s)": median(taken["sweep"]),
            "sweep / loop, time": speed(taken, "loop", "sweep")}


def draw_pictures(configure: Configure) -> Figures:
    """Each picture of a run of the main config with 10,000 test images, in a process of its own.

    50,000 training images; the model is untrained, which takes as long. Memory is what the picture
    takes besides its data, model and predictions, at its peak.
    """
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            run = noise_run(configure(), Path(folder, "run"), noise(50_000, 10_000))
        names = [name for name in VISUALIZERS.own if not run.missing({"NAME": name})]
        for name in names:
            code = f"from benchmarks.measure import time_picture; time_picture({name!r})"
            done = subprocess.run([sys.executable, "-c", code, str(run.folder)],
                                  capture_output=True, encoding="utf-8", errors="replace")
            if done.returncode:
                raise RunError(f"drawing {name} failed: {done.stderr.strip()[-500:]}")
            taken, more = map(float, done.stdout.split()[-2:])
            figures |= {f"{name} (s)": taken, f"{name} (MB more)": more}
    return figures


def noise_run(config: Config, folder: Path, data: ImageData) -> Run:
    """Return the run of a model that was not trained, tested on other images than the config's."""
    # The memory that importing these takes is none of a training's.
    from cvkit.evaluation.run_evaluation import evaluate
    from cvkit.runs.checkpoint import Checkpoint
    from cvkit.runs.folder import Run
    from cvkit.runs.metrics_file import add_metrics

    run = Run.create(config, "noise\n", folder)
    model = build_model(config.MODEL, 10, (3, 32, 32))
    values = {f"{split}/{name}": 0.5 for split in ("train", "test")
              for name in ("loss", "accuracy")}
    Checkpoint(model=model.state_dict(), config=config.dump(), classes=list(data.classes),
               mean=list(MEAN), std=list(STD), image_shape=[3, 32, 32], epoch=1, metrics=values,
               monitored="test", images=data.facts).save(run.checkpoints / "last.pt")
    add_metrics(folder, {"epoch": 1, "lr": 0.1, "seconds": 1.0, "images_per_second": 1.0, **values,
                         "rates": [[0, 0.1], [390, 0.1]]})
    run = Run(folder)
    run.data = data
    evaluate(run)
    return run


def time_picture(name: str) -> None:
    """Print how long a picture of a `noise_run`, the first argument, takes, and how many MB."""
    from cvkit.runs.folder import Run

    def memory_of(line: str) -> float:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.search(rf"{line}:\s+(\d+) kB", status)[1]) * 1024 / 1e6

    run = Run(sys.argv[1])
    run.data = noise(50_000, 10_000)
    _ = run.loaders, run.model, run.predictions
    importlib.import_module(VISUALIZERS.module)
    # What building the data took at its peak is forgotten.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = memory_of("VmRSS")
    taken = seconds(lambda: [figure.savefig(io.BytesIO(), format="png")
                             for figure in figures_of(run, {"NAME": name})])
    print(taken, memory_of("VmHWM") - before)


def exported_session(member: Trained, folder: str) -> InferenceSession:
    """Return onnxruntime's session of a model, with as many threads as torch has."""
    from onnxruntime import InferenceSession, SessionOptions

    from cvkit.deployment.export import export_model

    path = Path(folder, "model.onnx")
    noise_images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    export_model(member.model, path, noise_images, mean=MEAN, std=STD, metadata={})
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return InferenceSession(path, options, providers=["CPUExecutionProvider"])


PARTS = {"step": step, "limit": limit, "freezing": freezing, "growth": growth, "memory": memory,
         "start": start, "cam": cam, "predict": predict_pictures, "sweep": sweep,
         "pictures": draw_pictures, "peers": peers}


def measure(names: Sequence[str] = (),
            overrides: Sequence[str] = ()) -> tuple[str, dict[str, Figures]]:
    """Measure some parts, or all, of the main config; see `tools/benchmark.py`.

    Args:
        names: of PARTS.
        overrides: "KEY", "VALUE", … for the main config.

    Returns:
        The machine in words, and figures by part and name.

    Raises:
        UserError: an unknown part or key.
    """
    for name in names:
        if name not in PARTS:
            raise ConfigError(f"no part {name!r} of the benchmark", hint=suggest(name, PARTS))

    def configure(*further: str) -> Config:
        return load_config(MAIN, ["REQUIRE", "null", *overrides, *further])

    config = configure()
    check_components(config)
    device = Experiment(config).device
    words = (f"{describe(device)}; torch {torch.__version__}, albumentations {A.__version__}, "
             f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    return words, {name: PARTS[name](configure) for name in names or PARTS}
