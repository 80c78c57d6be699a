"""Every key of a config: its default, its meaning, and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cvkit.registry import NAME

BASE = "_BASE_"


@dataclass(frozen=True)
class Key:
    """A key of the run: its default, whose type it keeps, what it means and what is allowed.

    A default of None stands for a mapping with keys of its own.
    """

    default: Any
    doc: str
    minimum: float = 0
    maximum: float = math.inf
    choices: tuple[str, ...] = ()
    pattern: str = ""
    is_path: bool = False


@dataclass(frozen=True)
class Component:
    """A node `{NAME: …, arguments}` of one registry, or a list of them."""

    kind: str
    doc: str
    default: Any = None
    required: bool = False
    is_list: bool = False


# Keys of version 0.1, which the configs of runs may still have, and what they are called now.
RENAMED = {"DATA.BACKEND": "DATA.PIPELINE", "TRAIN.EMA": "TRAIN.EMA_DECAY"}

SCHEMA: dict[str, Any] = {
    "IMPORTS": Key([], "your own .py files (relative to the config) or modules to register"),
    "SEED": Key(0, "seeds weights, shuffling and augmentation"),
    "DETERMINISTIC": Key(False, "only deterministic GPU kernels; slower"),
    "OUTPUT_DIR": Key("runs", "run folders are made in here", is_path=True),
    "DEVICE": Key("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, mps"),
    "MODEL": Component("model", "the network", required=True),
    "DATA": {
        "DATASET": Component("dataset", "the images and their classes", required=True),
        "BATCH_SIZE": Key(128, "images per training batch", minimum=1),
        "EVAL_BATCH_SIZE": Key(0, "images per evaluation batch; 0: 2 BATCH_SIZE, on a GPU 8"),
        "LIMIT": Key(0, "at most so many images of each split, class-balanced; 0: all"),
        "SPLIT_SEED": Key(0, "seeds what is held out and what LIMIT takes, whatever SEED is"),
        "VAL_FRACTION": Key(0.0, "part of train held out and monitored; 0: test is monitored",
                            maximum=0.9),
        "FOLDS": Key(0, "parts of a cross-validation, each with its share of every class; 0: none. "
                     "--folds trains them all"),
        "FOLD": Key(0, "which of the FOLDS is the test set, from 0; the others are trained on"),
        "FOLD_REPEAT": Key(0, "which division of the images into FOLDS, from 0"),
        "SAMPLER": Component("sampler", "which training images an epoch has; null: every one once"),
        "PIPELINE": Key("auto", "auto: whole batches at once where every transform can and images "
                       "fit in memory, else image by image",
                       choices=("auto", "albumentations", "batched")),
        "CACHE_GB": Key(2.0, "memory for decoded image files; more are decoded each time"),
        "WORKERS": Key(-1, "loader processes for image by image; -1: what suits the machine",
                       minimum=-1),
        "TRAIN_TRANSFORMS": Component("transform", "augmentation, in order", [], is_list=True),
        "TEST_TRANSFORMS": Component("transform", "for test and validation", [], is_list=True),
    },
    "LOSS": Component("loss", "what is minimised", {NAME: "CrossEntropyLoss"}),
    "OPTIMIZER": Component("optimizer", "what updates the weights", required=True),
    "SCHEDULER": Component("scheduler", "what changes the learning rate; null: nothing"),
    "METRICS": Component("metric", "measured besides loss and accuracy", [], is_list=True),
    "TTA": Component("transform", "test-time augmentation: in the test that ends a training, and "
                     "later ones, probabilities are averaged over an image and what each of these "
                     "makes of it", [], is_list=True),
    "WRITERS": Component("writer", "further logs besides metrics.jsonl", [], is_list=True),
    "VISUALIZERS": Component("visualizer", "what is drawn of a run", [], is_list=True),
    "TRAIN": {
        "EPOCHS": Key(20, "passes over the training images", minimum=1),
        "PRECISION": Key("auto", "auto: bf16 where the hardware has it, else fp16 on a GPU",
                         choices=("auto", "fp32", "bf16", "fp16")),
        "COMPILE": Key(False, "torch.compile the model; a minute at the start, needs a compiler"),
        "CHANNELS_LAST": Key(True, "memory layout of images and weights; faster on most hardware"),
        "WARMUP_EPOCHS": Key(0.0, "linear warm-up from 0 before the scheduler starts"),
        "CLIP_GRAD_NORM": Key(0.0, "largest norm of all gradients together; 0: any"),
        "ACCUMULATE": Key(1, "batches per optimizer step", minimum=1),
        "EMA_DECAY": Key(0.0, "decay of averaged weights, which are then evaluated; 0: off",
                         maximum=0.99999),
        "EMA_EVERY": Key(1, "steps of the optimizer from one averaging to the next", minimum=1),
        "EMA_POWER": Key(0.0, "let the decay rise with this power of the part of the training that "
                         "is over; 0: as fast as few averaged weights allow"),
        "EMA_LOOKAHEAD": Key(False, "go on from the averaged weights each time (Lookahead)"),
        "FREEZE": Key([], "parameters that do not learn: names, with * and ?, of them or of what "
                      "holds them; backbone, head, norms, all; ! before a name takes it out"),
        "UNFREEZE": Key(None, "by epoch, what of these learns from then on: {5: [layer4], 8: all}"),
        "FREEZE_FROM": Key(None, "by epoch, what stops learning from then on: {4: [whiten]}"),
        "DECAY_NORM_AND_BIAS": Key(True, "weight decay on norms and biases as well"),
        "MONITOR": Key("accuracy", "what best.pt and early stopping follow: loss, or a metric"),
        "CHECKPOINT_EVERY": Key("epoch", "when last.pt is saved: epoch, or also inside of epochs, "
                                "every '500 steps' or '10 minutes'",
                                pattern=r"epoch|[1-9]\d* ?steps?|[1-9]\d* ?min(ute)?s?"),
        "SYNC_BATCHNORM": Key(False, "batch norms see the whole batch of all GPUs, where there are "
                              "several processes"),
        "UNUSED_PARAMETERS": Key(False, "with several processes: the model leaves out some of its "
                                 "parameters by chance, as stochastic depth does"),
        "EARLY_STOP": Key(0, "stop after so many epochs without a better MONITOR; 0: never"),
    },
    "FINE_TUNE": Key(None, "for a pretrained model, {epochs_frozen: 1, backbone_lr: 0.1}: sets "
                     "TRAIN.FREEZE and UNFREEZE, and OPTIMIZER.groups"),
    "REQUIRE": Key(None, "what an assignment demands of the keys above and of the results"),
}


# A file that has this node besides says what of a config is searched for.
SWEEP = "SWEEP"
SWEEP_SCHEMA: dict[str, Any] = {
    "SPACE": Key(None, "by key of the config, the values that are tried: [batch, group], or "
                 "{NAME: float, low: 1e-3, high: 1, log: true}"),
    "SAMPLER": Component("searcher", "what proposes values", {NAME: "TPESampler"}),
    "PRUNER": Component("pruner", "what ends hopeless trials early; null: nothing"),
    "TRIALS": Key(20, "how many in all; of a grid at most its points", minimum=1),
    "SEEDS": Key(1, "trainings a trial, of which the mean counts", minimum=1),
    "MONITOR": Key("", "what is searched for, loss or a metric; empty: TRAIN.MONITOR"),
    "STORAGE": Key("", "a database that several machines share, postgresql://…; empty: a file "
                   "beside the runs"),
    "HEARTBEAT": Key(60, "seconds between a trial's signs of life in a database; after two without "
                     "any it is tried again", minimum=1),
}


def _by_dotted_key(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, spec in schema.items():
        yield path + key, spec
        if isinstance(spec, dict):
            yield from _by_dotted_key(spec, f"{path}{key}.")


KEYS = dict(_by_dotted_key(SCHEMA))
