"""What trains without an error and is wrong all the same, told as lines `warning    …`.

Each function returns the warnings it finds, by kind; the reporter `Checks` says each kind once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from cvkit.config import Config
from cvkit.data import ImageData, ImageFiles, Loaders
from cvkit.data.assembly import PLACES
from cvkit.data.duplicates import DUPLICATES, Twin, duplicates
from cvkit.data.loaders import Batch
from cvkit.data.pipeline import Pipeline
from cvkit.data.scan import statistics
from cvkit.data.splits import evenly
from cvkit.models.pretrained import begins_trained
from cvkit.models.probing import in_evaluation_mode, same_kernels, state_kept
from cvkit.registry import LOSSES, NAME
from cvkit.reporting.reporter import Reporter
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import Run
from cvkit.runs.predictions import Predictions
from cvkit.system.command import command
from cvkit.system.device import autocast
from cvkit.system.files import write_whole
from cvkit.system.log import LOG
from cvkit.system.seeds import seed_epoch
from cvkit.system.text import and_more, escape_controls, plural
from cvkit.training.losses import ClassificationLoss, torch_form
from cvkit.training.schedulers import Schedule, build_schedule, is_to_find
from cvkit.training.state import TrainingState


class Checks(Reporter):
    """Says warnings, each kind once.

    Args:
        parts: data and loaders of the training.
        run: where it is kept; None where nothing is.
    """

    def __init__(self, parts: Experiment, run: Run | None = None):
        self.parts, self.run = parts, run
        self._said: set[str] = set()
        self._odd: dict[str, str] = {}

    def look(self, state: TrainingState, batch: Batch) -> None:
        """Note what is wrong with the outputs of a model and a loss, in their trial."""
        self._odd = odd_outputs(self.parts.config, state, batch)

    def begin(self, state: TrainingState) -> None:
        parts = self.parts
        found = duplicates(parts.data)
        if found and self.run is not None:
            lines = [escape_controls(twin.words) for twins in found.values() for twin in twins]
            write_whole(self.run.folder / DUPLICATES, "\n".join([*lines, ""]))
        self._say({**overlaps(parts.config, parts.data, found),
                   **before_training(parts.config, parts.data, parts.loaders,
                                     parts.loaders.train.plan.steps), **self._odd})

    def say_odd(self) -> None:
        """Say what `look` noted."""
        self._say(self._odd)

    def epoch(self, state: TrainingState, values: dict[str, Any]) -> None:
        records = self.run.metrics if self.run else [values]
        found = after_epoch(self.parts.config, self.parts.data, state.loss, records,
                            state.progress.loss.batches())
        # A model that guesses while its loss rises mostly names one class, and has its own advice.
        if "chance" not in self._said | set(found) and state.predictions is not None:
            found |= one_class_alone(self.parts.config, self.parts.data.monitored, state.epoch,
                                     state.predictions)
        self._say(found)

    def end(self, state: TrainingState, run: Run) -> None:
        self._say(idle_scheduler(self.parts.config, state.schedule, run.metrics))

    def _say(self, warnings: Mapping[str, str]) -> None:
        for kind, text in warnings.items():
            if kind not in self._said:
                LOG.info(f"warning    {text}")
        self._said |= set(warnings)


def before_training(config: Config, data: ImageData, loaders: Loaders,
                    steps_per_epoch: int) -> dict[str, str]:
    """Return what is wrong with the classes, the normalisation and the plan of the rate."""
    return {**missing_classes(config, data), **uneven_classes(config, data),
            **frozen_untrained(config),
            **odd_normalisation(config, data, loaders), **drawn_tests(config, loaders),
            **short_warmup(config, steps_per_epoch), **idle_plan(config, steps_per_epoch)}


def after_epoch(config: Config, data: ImageData, loss: nn.Module,
                records: Sequence[Mapping[str, Any]],
                batch_losses: Sequence[float]) -> dict[str, str]:
    """Return what is wrong with the last of the epochs.

    Args:
        config, data, loss: of the training.
        records: of the epochs so far, as `Run.metrics`.
        batch_losses: of the last epoch, in order.
    """
    return {**not_a_number(config, records[-1], data.monitored),
            **negative_rate(config, records[-1]),
            **negative_loss(loss, records[-1], data.monitored),
            **rising_at_chance(config, data, records, batch_losses)}


def overlaps(config: Config, data: ImageData,
             found: Mapping[str, Sequence[Twin]] | None = None) -> dict[str, str]:
    """Warn of test or validation images that are training images too, or nearly.

    Args:
        found: what `duplicates` returns, if that is known.
    """
    warnings = {}
    for split, twins in (duplicates(data) if found is None else found).items():
        images, equal = getattr(data, split), sum(twin.is_equal for twin in twins)
        at_least = "at least " if isinstance(images.images, ImageFiles) else ""
        near = len(twins) - equal
        counts = (f"{equal:,} of the {len(images):,} {split} images too"
                  + (f", and {near:,} more nearly" if near else "")) if equal else (
                      f"{near:,} of the {len(images):,} {split} images, or nearly so")
        listed = f", which a run lists in its {DUPLICATES}" if len(twins) > 3 else ""
        show = (f", after a look at them: {command('visualize')} CONFIG --duplicates"
                if len(twins) > equal else "")
        warnings[f"overlap {split}"] = (
            f"train holds {at_least}{counts} "
            f"({and_more([twin.words for twin in twins], 3)}{listed}): the {split} accuracy "
            f"counts what was learned by heart. Take them out of one split of {_dataset(config)}"
            f"{show}")
    return warnings


def missing_classes(config: Config, data: ImageData) -> dict[str, str]:
    """Warn of classes without images in a split."""
    # Classes are kept with the splits that lack just these.
    without: dict[tuple[str, ...], list[str]] = {}
    for split, images in data.splits.items():
        counts = np.bincount(images.labels, minlength=len(data.classes))
        names = tuple(name for name, count in zip(data.classes, counts) if not count)
        without.setdefault(names, []).append(split)
    found = {}
    for names, splits in without.items():
        if names:
            effect = ("the model cannot learn them" if "train" in splits else
                      f"the {' and '.join(splits)} accuracy says nothing of them")
            found[f"classes {splits}"] = (
                f"{len(names)} of {len(data.classes)} classes without {' and '.join(splits)} "
                f"images: {and_more(names, 5)}; {effect}. Add images to "
                f"{_dataset(config)}, or take what has none out of its classes")
    return found


def uneven_classes(config: Config, data: ImageData) -> dict[str, str]:
    """Warn of a class with a tenth of another's training images or less, if nothing is done for it.

    What does something are weights of classes, a sampler, and a loss for such data.
    """
    counts, loss = np.array(data.class_counts), config.LOSS
    known = np.flatnonzero(counts)
    rare, frequent = known[counts[known].argmin()], known[counts[known].argmax()]
    may_weigh = LOSSES.asks_for(loss, "class_counts")
    is_seen_to = (config.DATA.SAMPLER is not None or loss[NAME] == "FocalLoss"
                  or any(loss.get(key) is not None for key in ("weight", "pos_weight"))
                  or (LOSSES.is_own(loss) and may_weigh))
    if counts[frequent] > 2 * counts[rare] and loss.get("weight") == "balanced" and (
            config.DATA.SAMPLER is not None and config.DATA.SAMPLER[NAME] == "balanced"):
        return {"twice": "DATA.SAMPLER balanced and LOSS.weight balanced each make up for rare "
                         "classes: together they count too much. Leave one of them out"}
    if counts[frequent] < 10 * counts[rare] or is_seen_to:
        return {}
    weigh = "weigh them by LOSS.weight balanced, or " * may_weigh
    measure = ('; METRICS "[{NAME: BalancedAccuracy}]" tells how it is with each counted alike'
               if all(node[NAME] != "BalancedAccuracy" for node in config.METRICS) else "")
    return {"uneven": (
        f"train has {counts[frequent]:,} images of class {escape_controls(data.classes[frequent])} "
        f"and {counts[rare]:,} of {escape_controls(data.classes[rare])}: the model may come to "
        f"neglect rare classes. If they matter as much, {weigh}draw as many of each by "
        f'DATA.SAMPLER "{{NAME: balanced}}"{measure}')}


def frozen_untrained(config: Config) -> dict[str, str]:
    """Warn of frozen parameters that nothing has trained."""
    if not config.TRAIN.FREEZE or begins_trained(config.MODEL):
        return {}
    train_all = ("FINE_TUNE null trains all" if "FINE_TUNE" in config.TRAIN.origin("FREEZE") else
                 "TRAIN.FREEZE [] and TRAIN.UNFREEZE null train all")
    return {"frozen": (
        f"TRAIN.FREEZE [{', '.join(config.TRAIN.FREEZE)}] keeps weights as they were drawn: MODEL "
        f"{config.MODEL.NAME} begins with none that were trained. MODEL.INIT_FROM names some; "
        f"{train_all}")}


def odd_normalisation(config: Config, data: ImageData, loaders: Loaders) -> dict[str, str]:
    """Warn of constants far from the images': mean by 3 of their deviations, deviation 5 times.

    What is usual stays within: ImageNet's constants on other photographs, 0.5 and 0.5, or pixels
    that are only scaled to 0–1. For pretrained weights, which need their own constants, a deviation
    50 times off is far, and any mean is right.
    """
    mean, std = np.array(loaders.mean), np.array(loaders.std)
    data_mean, data_std = map(np.array, _pixel_statistics(data))
    # ToRGB or ToGray changes the number of channels.
    if len(data_mean) != len(mean):
        data_mean, data_std = data_mean.mean(), data_std.mean()
    if not np.all(data_std > 0):
        return {}
    is_pretrained = begins_trained(config.MODEL)
    factor = np.maximum(data_std / std, std / data_std).max()
    deviations = (np.abs(data_mean - mean) / data_std).max()
    if factor <= (50 if is_pretrained else 5) and (is_pretrained or deviations <= 3):
        return {}
    node = next((f"DATA.{key}.{number}" for key in ("TRAIN_TRANSFORMS", "TEST_TRANSFORMS")
                 for number, node in enumerate(config.DATA[key])
                 if node.NAME == "Normalize" and ("mean" in node or "std" in node)), None)
    fix = (f"Leave mean and std out of {node}: Normalize then takes the data's own" if node else
           f"Correct mean and std of {_dataset(config)}: of pixels scaled to 0–1")
    return {"normalisation": (
        f"images are normalised with mean {_words(mean)} and std {_words(std)}, theirs are "
        f"{_words(data_mean)} and {_words(data_std)}: the model receives mean "
        f"{_words((data_mean - mean) / std)} and std {_words(data_std / std)} instead of about 0 "
        f"and 1. {fix}")}


def _pixel_statistics(data: ImageData) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation: of some training images, or as declared if these are files."""
    if not isinstance(data.train.images, np.ndarray):
        return data.mean, data.std
    count = max(4_000_000 // data.train.first().nbytes, 10)
    some = evenly(data.train.index.tolist(), count)
    return statistics(data.train.images[some])


def drawn_tests(config: Config, loaders: Loaders) -> dict[str, str]:
    """Warn of test images that are changed by chance, which those of training alone should be."""
    if not loaders.test.pipeline.random:
        return {}
    # The one that the transforms were tried on.
    image, drawing = loaders.train.images.first(), []
    # Normalize, which stands last, is none of them.
    for node, transform in zip(config.DATA.TEST_TRANSFORMS,
                               copy.deepcopy(loaders.test.pipeline.transforms)):
        alone, made = Pipeline([transform]), []
        for seed in range(16):
            alone.seed(seed)
            made.append(alone(image))
        if not all(np.array_equal(each, made[0]) for each in made):
            drawing.append(node[NAME])
        image = made[0]
    if not drawing:
        return {}
    return {"drawn tests": (
        f"DATA.TEST_TRANSFORMS change test images by chance ({', '.join(drawing)}): the accuracy "
        "is of those, and others' is of the images as they are. Leave it to TRAIN_TRANSFORMS; TTA "
        "averages over such views")}


@torch.no_grad()
def odd_outputs(config: Config, state: TrainingState, batch: Batch) -> dict[str, str]:
    """Return warnings of what the model says of a batch, and of the loss."""
    model, count = state.evaluated_model, len(batch.images)

    def said(count: int, seed: int) -> torch.Tensor:
        seed_epoch(config.SEED, seed, config.DETERMINISTIC)
        with autocast(state.device, state.precision):
            return model(batch.images[:count]).float()

    with state_kept(model, state.loss), in_evaluation_mode(model, state.loss), same_kernels():
        logits = said(count, 0)
        found = odd_logits(config, logits, said(max(count // 2, 1), 0))
        difference = float((logits - said(count, 1)).abs().max())
        if difference > 0.001 * float(logits.abs().max()):
            # What is drawn depends on the number of images as well.
            found.pop("batch", None)
            found["draws"] = (f"what model {config.MODEL[NAME]} says of an image in "
                              "evaluation is drawn: dropout has to know of it, "
                              "F.dropout(x, p, self.training) or nn.Dropout")
        return {**found, **odd_loss(config, state.loss, batch.labels, logits)}


def odd_logits(config: Config, logits: torch.Tensor, of_half: torch.Tensor) -> dict[str, str]:
    """Warn of probabilities in the place of logits, and of what depends on the rest of a batch.

    Args:
        logits: (N, C), of an evaluation.
        of_half: what the first images get without the others; of one batch only the first ones.
    """
    name, logits, of_half = config.MODEL.NAME, logits.float(), of_half.float()
    found = {}
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 0.01).all()):
        found["probabilities"] = (
            f"model {name} returns probabilities, and loss and pictures take them for logits: "
            "leave its softmax out")
    difference = float((logits[:len(of_half)] - of_half).abs().max())
    if difference > 0.05 * float(logits.abs().max()):
        found["batch"] = (
            f"what model {name} says of an image in evaluation depends on the other images of its "
            f"batch, by up to {difference:.3g}: results will change with DATA.EVAL_BATCH_SIZE. Has "
            "it a softmax over dim 0, or a norm without running statistics?")
    return found


def odd_loss(config: Config, loss: nn.Module, labels: torch.Tensor,
             logits: torch.Tensor) -> dict[str, str]:
    """Warn of a loss that is higher for right logits than for wrong ones.

    Not of one with weights of its own, which have yet to learn what is right.

    Args:
        labels, logits: (N,) and (N, C), of a model. It may return what the loss alone knows, so
            that the loss is given no other values, only in another order.
    """
    if any(parameter.requires_grad for parameter in loss.parameters()):
        return {}

    def value(classes: torch.Tensor) -> float:
        """Return the loss once the highest value of each image is that of another class."""
        rows, highest = torch.arange(len(logits), device=logits.device), logits.argmax(1)
        moved = logits.clone()
        moved[rows, highest], moved[rows, classes] = logits[rows, classes], logits[rows, highest]
        return float(loss(moved, labels))

    right, wrong = value(labels), value((labels + 1) % logits.shape[1])
    if not right > wrong + 1e-4 * abs(wrong):
        return {}
    return {"sign": f"loss {config.LOSS.NAME} is {right:.4g} where all images are right and "
                    f"{wrong:.4g} where all are wrong, and training makes it low: is its sign the "
                    "other way round?"}


def short_warmup(config: Config, steps_per_epoch: int) -> dict[str, str]:
    """Warn of a warm-up that comes to no step."""
    epochs = config.TRAIN.WARMUP_EPOCHS
    if epochs == 0 or round(epochs * steps_per_epoch):
        return {}
    return {"warmup": f"there is no warm-up: TRAIN.WARMUP_EPOCHS {epochs:g} comes to no step where "
                      f"an epoch has {plural(steps_per_epoch, 'step')}"}


def idle_plan(config: Config, steps_per_epoch: int) -> dict[str, str]:
    """Warn, before training, of a scheduler of torch that will leave the rate as it is.

    Only of those stepped by epoch: they can be tried in no time, the others move at once.
    """
    epochs = config.TRAIN.EPOCHS - math.floor(config.TRAIN.WARMUP_EPOCHS)
    if config.SCHEDULER is None or is_to_find(config.SCHEDULER):
        return {}
    twin = torch.optim.SGD([torch.zeros(1)], lr=config.OPTIMIZER.lr, momentum=0.9)
    schedule = build_schedule(config.SCHEDULER, twin, epochs, steps_per_epoch)
    is_own = not type(schedule.scheduler).__module__.startswith("torch.optim")
    if schedule.unit != "epoch" or is_own:
        return {}
    rates = [schedule.rate]
    # Torch expects a step of the optimizer before those of its scheduler.
    twin.step()
    schedule.after_step()
    for _ in range(epochs - 1):
        schedule.after_epoch(1.0, 0.5)
        rates.append(schedule.rate)
    return _idle(config, rates) if epochs > 1 else {}


def idle_scheduler(config: Config, schedule: Schedule,
                   records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Warn, after training, of a scheduler that has left the rate as it was.

    Not of one that follows the loss, as it may never have to act; nor of a training that was
    stopped early or is too short for a scheduler that acts between epochs.
    """
    rates = [rate for record in records for step, rate in record.get("rates", ())
             if step >= schedule.warmup_steps]
    epochs = config.TRAIN.EPOCHS - math.floor(config.TRAIN.WARMUP_EPOCHS)
    if schedule.unit in (None, "metric") or len(records) < config.TRAIN.EPOCHS or not rates or (
            schedule.unit == "epoch" and epochs < 2):
        return {}
    return _idle(config, rates)


def _idle(config: Config, rates: Sequence[float]) -> dict[str, str]:
    lowest, highest = min(rates), max(rates)
    # Less than a percent makes no difference to a training.
    if highest - lowest > 0.01 * highest:
        return {}
    node = config.SCHEDULER
    arguments = ", ".join(f"SCHEDULER.{key} {value}" for key, value in node.items() if key != NAME)
    rate = f"{lowest:.4g}" if lowest == highest else f"{lowest:.6g} to {highest:.6g}"
    return {"scheduler": (
        f"{node.NAME} leaves the learning rate at {rate} in all {config.TRAIN.EPOCHS} epochs. "
        f"Choose {arguments or 'its arguments'} for TRAIN.EPOCHS {config.TRAIN.EPOCHS}, or say "
        "SCHEDULER null if a constant rate is meant")}


def not_a_number(config: Config, record: Mapping[str, Any], monitored: str) -> dict[str, str]:
    """Warn of a monitored metric that had nothing to count, or divided by nothing."""
    name = config.TRAIN.MONITOR
    if not math.isnan(record.get(f"{monitored}/{name}", 0.0)):
        return {}
    return {"nan": f"{monitored} {name} is NaN in epoch {record['epoch']}, which counts as worse "
                   "than any number"}


def negative_rate(config: Config, record: Mapping[str, Any]) -> dict[str, str]:
    """Warn of learning rates below 0."""
    lowest = min((rate for _, rate in record.get("rates", ())), default=0.0)
    if lowest >= 0:
        return {}
    return {"rate": f"{config.SCHEDULER.NAME} made the learning rate negative in epoch "
                    f"{record['epoch']}, down to {lowest:.3g}: such steps raise the loss"}


def negative_loss(loss: nn.Module, record: Mapping[str, Any], monitored: str) -> dict[str, str]:
    """Warn of a loss below 0 that is one of torch's, or a subclass, which cannot be negative."""
    form = torch_form(loss)
    values = {split: record[f"{split}/loss"] for split in ("train", monitored)}
    # Rounding may lead a little below 0.
    if form is None or min(values.values()) > -1e-4:
        return {}
    base, outputs = form
    shown = ", ".join(f"{split} {value:.4f}" for split, value in values.items())
    fix = ("The numbers of LOSS.weight and pos_weight have to be above 0"
           if isinstance(loss, ClassificationLoss) else
           f"It is defined on {outputs}: make {type(loss).__name__} turn the logits into "
           f"them, or set LOSS.NAME {base}, which is given them")
    return {"negative loss": (
        f"the loss is below 0 after epoch {record['epoch']} ({shown}), and {base} cannot be. "
        f"{fix}")}


def rising_at_chance(config: Config, data: ImageData, records: Sequence[Mapping[str, Any]],
                     batch_losses: Sequence[float]) -> dict[str, str]:
    """Warn of an epoch after which the model guesses and whose loss has risen.

    It guesses if its accuracy is, within two standard deviations, the share of the largest class.
    The loss has risen if the last third of the epoch is more than a third above the epoch before,
    or, in the first epoch, above its first batch, which an untrained model was given. An epoch of
    fewer than 20 batches tells nothing.
    """
    record, images = records[-1], getattr(data, data.monitored)
    accuracy = record[f"{data.monitored}/accuracy"]
    chance = np.bincount(images.labels).max() / len(images)
    noise = math.sqrt(chance * (1 - chance) / len(images))
    if len(batch_losses) < 20 or accuracy > chance + 2 * noise:
        return {}
    before = records[-2]["train/loss"] if len(records) > 1 else batch_losses[0]
    late = batch_losses[-(len(batch_losses) // 3):]
    now = sum(late) / len(late)
    if not now > before + abs(before) / 3:
        return {}
    rate = max((rate for _, rate in record.get("rates", ())), default=record["lr"])
    return {"chance": (
        f"after epoch {record['epoch']} the {data.monitored} accuracy of {100 * accuracy:.2f}% is "
        f"that of guessing (the largest class has {100 * chance:.2f}%), and the train loss rises, "
        f"from {before:.4f} to {now:.4f}, at learning rates up to {rate:.3g}. Lower "
        f"{rate_key(config)} ({command('find-lr')} suggests one), warm up (TRAIN.WARMUP_EPOCHS 1) "
        "or clip gradients (TRAIN.CLIP_GRAD_NORM 1)")}


def one_class_alone(config: Config, split: str, epoch: int,
                    predictions: Predictions) -> dict[str, str]:
    """Warn of an epoch after which all images of the monitored split are taken for one class."""
    classes = len(np.unique(predictions.true))
    if classes < 2 or len(np.unique(predictions.predicted)) > 1:
        return {}
    name = escape_controls(predictions.classes[predictions.predicted[0]])
    return {"one class": (
        f"after epoch {epoch} all {len(predictions.true):,} {split} images are taken for {name}, "
        f"though they are of {classes} classes. If that stays so, lower "
        f"{rate_key(config)}, warm up (TRAIN.WARMUP_EPOCHS 1) or, where most images are of that "
        'class, draw as many of each (DATA.SAMPLER "{NAME: balanced}")')}


def rate_key(config: Config) -> str:
    """Return the key that sets the highest learning rate."""
    has_peak = config.SCHEDULER is not None and "max_lr" in config.SCHEDULER
    return "SCHEDULER.max_lr" if has_peak else "OPTIMIZER.lr"


def _dataset(config: Config) -> str:
    node = config.DATA.DATASET
    key = next((key for key in PLACES.values() if key in node), None)
    return f"DATA.DATASET {node.NAME}" + (f", DATA.DATASET.{key} {node[key]}" if key else "")


def _words(values: Any) -> str:
    return " ".join(f"{value:.3g}" for value in np.atleast_1d(values))
