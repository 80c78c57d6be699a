"""Writing a model with its preprocessing into one file, which counts once it was checked."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import cvkit
from cvkit.config.tree import in_words
from cvkit.data.pictures import find_images
from cvkit.data.splits import evenly
from cvkit.deployment.graph import InferenceGraph
from cvkit.errors import CheckpointError, ConfigError, DataError, RunError, UserError
from cvkit.registry import DATASETS, NAME
from cvkit.runs.checkpoint import Checkpoint
from cvkit.runs.folder import Run, refuse_links
from cvkit.runs.trained import Trained, open_trained, takes_any_size
from cvkit.system.files import replacing, user_path, writing
from cvkit.system.text import escape_controls, plural, suggest

ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2"}
# The most that a probability of the file may differ from the model's own in fp32. In fp16 a weight
# is rounded by up to 2**-11 of itself. Were that to add up over 80 layers it would be 4 %, and
# softmax turns an error of 0.04 in logits into one of 0.02 at most.
BOUNDS = {"fp32": 1e-4, "fp16": 0.02}
# Batches that are checked: a graph may be right for the size alone that it was traced with.
_BATCHES = (1, 2, 17, 20)
_MOST_BYTES = {"onnx": 2**31 - 2**20}
# The batch of the example that is traced; a batch of one would be fixed in the graph.
_TRACED_BATCH = 3


@dataclass(frozen=True)
class Exported:
    """A file that was checked.

    Attributes:
        path: of the file.
        difference: the largest between a probability of the file and the model's own in fp32.
        agreement: the share of images for which both name the same class.
        images: how many were checked.
    """

    path: Path
    difference: float
    agreement: float
    images: int

    def __str__(self) -> str:
        return (f"{self.path}, {self.path.stat().st_size / 1e6:.1f} MB: over "
                f"{plural(self.images, 'image')} the largest difference from torch in fp32 is "
                f"{self.difference:.1e}, {self.agreement:.1%} have the same class")


def export(source: Run | str | Path | None = None, format: str | None = None,
           out: str | Path | None = None, precision: str = "fp32",
           images: str | Path | None = None, overwrite: bool = False,
           overrides: Sequence[str] | Mapping[str, Any] = ()) -> Exported:
    """Write the model of a run, or of one checkpoint, into a file that runs without cvkit.

    It takes uint8 images (N, height, width, channels) named `images`, normalises them, and returns
    `probabilities`, float32 (N, classes). TEST_TRANSFORMS are not in it, its metadata name them;
    nor is TTA.
    The file is compared with the model on images first, and only one that agrees is kept.

    Args:
        source: a run, its path, or a checkpoint file; None for the newest run.
        format: "onnx", or "torch_export" for a .pt2 file that `torch.export.load` reads; by
            default what the ending of `out` says, else "onnx".
        out: the file; `model.onnx` in the run, or beside the checkpoint, by default.
        precision: "fp32", or "fp16" for a file half as large.
        images: a folder of images to check the file with; by default the test images of the run,
            and noise where there are none.
        overwrite: whether a file that is there may be replaced.
        overrides: as `load_config` takes them: IMPORTS, for where your own code is now, DEVICE.

    Raises:
        UserError: no such run, a model that cannot be traced, a file that is there or cannot be
            written, or one that does not say what the model says.
    """
    if format is None:
        is_pt2 = out is not None and Path(out).suffix == ENDINGS["torch_export"]
        format = "torch_export" if is_pt2 else "onnx"
    _choose("--format", format, ENDINGS)
    _choose("--precision", precision, BOUNDS)
    _refuse_without_packages(format)
    trained = open_trained(source, overrides)
    run, checkpoint = trained.trained_in, trained.checkpoint
    if run is not None:
        run.refuse_links()
        target = run.folder / f"model{ENDINGS[format]}"
    else:
        target = user_path(trained.source).with_suffix(ENDINGS[format])
        refuse_links([target, target.with_name(f"{target.name}.part")])
    target = target if out is None else user_path(out)
    refuse_target(target, format, overwrite)
    taken, what = _images(trained, images)
    if trained.config.TTA:
        print("note       TTA is not in the file: its probabilities are of the image as it is")
    print(f"check      on {plural(len(taken), what)}")
    return export_model(trained.model, target, taken, mean=checkpoint.mean, std=checkpoint.std,
                        metadata=describe(checkpoint, precision), format=format,
                        precision=precision, overwrite=overwrite)


def export_model(model: nn.Module, path: Path, images: np.ndarray, *, mean: Sequence[float],
                 std: Sequence[float], metadata: Mapping[str, str], format: str = "onnx",
                 precision: str = "fp32", overwrite: bool = False) -> Exported:
    """Write a model with its preprocessing, check the file on images, and keep or refuse it.

    Args:
        model: of normalised images to logits, fp32; it is left alone.
        path: of the file; nothing is there, or half written, unless the check is passed.
        images: uint8 (N, H, W, C), of the size that the file will take.
        mean, std, precision: see `InferenceGraph`.
        metadata: texts by name, kept in the file.
        format, overwrite: see `export`.

    Raises:
        UserError: see `export`.
    """
    refuse_target(path, format, overwrite)
    _refuse_without_packages(format)
    expected = InferenceGraph(model, mean, std)
    graph = InferenceGraph(model, mean, std, precision) if precision != "fp32" else expected
    size = sum(value.nbytes for value in graph.state_dict().values())
    if size > _MOST_BYTES.get(format, size):
        raise UserError(f"the weights are {size / 1e9:.1f} GB, and one ONNX file holds 2 GB",
                        hint="--precision fp16 halves them; --format torch_export has no limit.")
    with writing(path), replacing(path) as file:
        file.write(WRITERS[format](trace(graph, images.shape[1:]), metadata))
        file.flush()
        difference, agreement = compare(_runner(file.name, format), expected, images)
        # It may be no number, which is not larger.
        if not difference <= BOUNDS[precision]:
            raise UserError(
                f"{path} is not kept: what it says differs from the model by up to "
                f"{difference:.2g}, and {BOUNDS[precision]:g} is allowed in {precision}; "
                f"{agreement:.1%} of {plural(len(images), 'image')} have the same class",
                hint="Its weights lose too much in fp16: take fp32." if precision == "fp16" else
                     "The exporter changed the model, or rounding adds up in it; "
                     f"try --format {next(name for name in ENDINGS if name != format)}.")
    return Exported(path, difference, agreement, len(images))


def describe(checkpoint: Checkpoint, precision: str) -> dict[str, str]:
    """Return the metadata of a checkpoint's file: texts by name, lists as JSON."""
    channels, height, width = checkpoint.image_shape
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    return {
        "cvkit_version": cvkit.__version__,
        "input": f"images: uint8 (N, {height}, {width}, {channels}), {kind}, 0-255; normalised in "
                 "the graph",
        "output": f"probabilities: float32 (N, {len(checkpoint.classes)})",
        "before": "not in the graph: " + "; ".join(_before(checkpoint)),
        "classes": json.dumps(checkpoint.classes),
        "mean": json.dumps(checkpoint.mean),
        "std": json.dumps(checkpoint.std),
        "input_size": json.dumps([height, width, channels]),
        "precision": precision,
        "config": checkpoint.config,
    }


def _before(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield what was done to a picture before it was an image of the training, in words."""
    facts = checkpoint.images or {}
    yield "turned as EXIF says"
    yield f"transparent pixels laid on {facts.get('background', 255)}"
    transforms = checkpoint.read_config().DATA.TEST_TRANSFORMS
    if facts.get("image_size") and not takes_any_size(transforms):
        yield ("another size than {}x{} resized to it, averaging over areas where it becomes "
               "smaller, else bilinearly").format(*facts["image_size"])
    yield in_words([node for node in transforms if node[NAME] != "Normalize"])


def refuse_target(path: Path, format: str, overwrite: bool) -> None:
    """Refuse a file that cannot or may not be written, before any work.

    Raises:
        RunError: it exists, its folder does not, or its name is that of another format.
    """
    if path.suffix != ENDINGS[format]:
        raise RunError(f"{path} is no name for --format {format}",
                       hint=f"It ends in {ENDINGS[format]}.")
    if not path.parent.is_dir():
        raise RunError(f"cannot write {path}: there is no folder {path.parent}",
                       hint="Make it first.")
    if path.is_dir():
        raise RunError(f"{path} is a folder", hint="Name a file in it.")
    if path.exists() and not overwrite:
        raise RunError(f"{path} is there already",
                       hint="--overwrite replaces it, --out names another file.")


def trace(graph: InferenceGraph, shape: Sequence[int]) -> torch.export.ExportedProgram:
    """Return what torch.export makes of a graph for images (H, W, C), of any batch.

    Raises:
        UserError: it cannot follow the model.
    """
    example = torch.zeros(_TRACED_BATCH, *shape, dtype=torch.uint8)
    hint = "It cannot follow branches that depend on values, or on the size of the batch."
    with _explained("torch.export cannot trace the model", hint), torch.no_grad():
        program = torch.export.export(graph, (example,), strict=False,
                                      dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            # It tells where the model's code lies on this machine.
            node.meta.pop("stack_trace", None)
    return program


def to_onnx(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Return an ONNX file with all weights in it."""
    with _explained("torch.onnx cannot write the model", "Try --format torch_export."):
        made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["images"],
                                 output_names=["probabilities"])
        assert made is not None
        made.model.metadata_props.update(metadata)
        model = made.model_proto
        # The exporter has a number for what is any batch.
        batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
            for dimension in value.type.tensor_type.shape.dim:
                if batch and dimension.dim_param == batch:
                    dimension.dim_param = "batch"
        return model.SerializeToString()


def to_pt2(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Return a file for `torch.export.load`."""
    file = io.BytesIO()
    with _explained("torch.export cannot save the model", "Try --format onnx."):
        torch.export.save(program, file, extra_files=dict(metadata))
    return file.getvalue()


WRITERS: dict[str, Callable[[Any, Mapping[str, str]], bytes]] = {
    "onnx": to_onnx, "torch_export": to_pt2}


def compare(run: Callable[[np.ndarray], np.ndarray], graph: nn.Module,
            images: np.ndarray) -> tuple[float, float]:
    """Return the largest difference of probabilities, and the share of equal classes.

    Args:
        run: what is checked, images to probabilities.
        graph: what it should say.
        images: uint8 (N, H, W, C), given in batches of 1, 2, 17 and 20, again and again.
    """
    difference, equal, start, number = 0.0, 0, 0, 0
    # All sizes have their turn, of few images too.
    images = images[np.arange(max(len(images), sum(_BATCHES))) % len(images)]
    while start < len(images):
        batch = images[start:start + _BATCHES[number % len(_BATCHES)]]
        found = run(batch)
        with torch.no_grad():
            expected = graph(torch.from_numpy(batch)).numpy()
        if found.shape != expected.shape:
            return float("inf"), 0.0
        # Unlike Python's, NumPy's keeps what is no number.
        difference = float(np.maximum(difference, np.abs(found - expected).max()))
        equal += int((found.argmax(1) == expected.argmax(1)).sum())
        start, number = start + len(batch), number + 1
    return difference, equal / len(images)


def _runner(path: str, format: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs a file as those who use it will."""
    if format == "onnx":
        import onnxruntime

        with _explained("onnxruntime cannot read the file", "Try --format torch_export."):
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run(images: np.ndarray) -> np.ndarray:
            return session.run(["probabilities"], {"images": images})[0]
    else:
        with _explained("torch.export cannot load the file", "Try --format onnx."):
            # By its name, which does not end in .pt2 yet, torch would not take it.
            module = torch.export.load(io.BytesIO(Path(path).read_bytes())).module()

        def run(images: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return module(torch.from_numpy(images)).numpy()

    def explained(images: np.ndarray) -> np.ndarray:
        with _explained(f"the file cannot be run on a batch of {len(images)}"):
            return run(images)
    return explained


@contextmanager
def _explained(problem: str, hint: str | None = None) -> Iterator[None]:
    """Turn whatever is raised meanwhile into a `UserError`, and keep warnings from the screen."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        # Exporters and runtimes raise what they stumble over, and a model's own code anything.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines)[:300] or type(error).__name__
        raise UserError(f"{problem}: {reason}", hint=hint) from error


def _refuse_without_packages(format: str) -> None:
    """Refuse to begin without what the format needs."""
    if format == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UserError(f"--format onnx needs a package that is not here: {error}",
                            hint="pip install onnx onnxruntime onnxscript") from None


def _choose(flag: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{flag} {value} is not known", hint=suggest(value, allowed))


def _images(trained: Trained, folder: str | Path | None) -> tuple[np.ndarray, str]:
    """Return images to check a file with, uint8 (N, H, W, C), and what they are, in words."""
    channels, height, width = trained.checkpoint.image_shape
    if folder is not None:
        paths = find_images([folder])
        chosen = [paths[place] for place in evenly(range(len(paths)), sum(_BATCHES))]
        prepared = []
        for path in chosen:
            try:
                prepared.append(trained.prepared(trained.reader.read(path)[0]))
            except DataError as error:
                print(f"left out   {escape_controls(error.problem)}")
        if not prepared:
            raise DataError(f"none of the images in {folder} can be read")
        return trained.augmented(prepared, 0), "image"
    reason, run = "a lone checkpoint has no images", trained.trained_in
    if run is not None:
        config = run.config.clone()
        config.defrost()
        config.DEVICE = trained.config.DEVICE
        if DATASETS.asks_for(config.DATA.DATASET, "download"):
            # Nothing is fetched for a check that nobody asked for.
            config.DATA.DATASET.download = False
        try:
            loader = run.with_config(config).loaders.test
            pixels, *_ = loader.source.take(evenly(range(len(loader.images)), sum(_BATCHES)), 0)
            if tuple(pixels.shape[1:]) == (height, width, channels):
                return pixels.cpu().numpy(), "test image"
            reason = "the test images of the run have another size now"
        except (CheckpointError, DataError) as error:
            reason = error.problem
    print(f"note       it is checked on noise only, which says less than images do: {reason}; "
          "--images FOLDER gives some")
    random = np.random.default_rng(0)
    shape = (sum(_BATCHES), height, width, channels)
    return random.integers(0, 256, shape, dtype=np.uint8), "noise image"
