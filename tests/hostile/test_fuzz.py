"""Random mistakes: each case works or ends in one clear `UserError`.

`CVKIT_FUZZ_CASES=100000 python -m pytest tests/hostile/test_fuzz.py` is a long run. Cases are numbered, and
a number alone decides what a case is: those of the suite are the first of a long run. A failure
names its number; `CVKIT_FUZZ_FIRST=4711 CVKIT_FUZZ_CASES=1` runs that one. All messages that users
were told go into the file that CVKIT_FUZZ_TOLD names, to be read.
"""

import contextlib
import copy
import io
import math
import os
import random
import re
import shutil
import signal
import string
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, TINY, paint
from PIL import Image

from cvkit.config import SCHEMA, Config, check_components, load_config, read_config
from cvkit.config.schema import Key
from cvkit.data import ImageData, ImageFiles, ImageSet
from cvkit.data.pipeline import build_pipeline
from cvkit.errors import UserError
from cvkit.evaluation.metrics import build_metrics
from cvkit.models import build_model
from cvkit.registry import (
    DATASETS,
    LAYERS,
    LOSSES,
    METRICS,
    MODELS,
    NAME,
    OPTIMIZERS,
    REGISTRIES,
    SCHEDULERS,
    TRANSFORMS,
    VISUALIZERS,
)
from cvkit.registry.signatures import parameters_of
from cvkit.runs.checkpoint import Checkpoint
from cvkit.runs.predictions import Predictions
from cvkit.session import check
from cvkit.training.groups import parameter_groups
from cvkit.training.losses import build_loss
from cvkit.training.optimizers import build_optimizer
from cvkit.training.schedulers import build_schedule

CASES = int(os.environ.get("CVKIT_FUZZ_CASES", 0))  # of the cheapest targets; 0: the suite's few
# A long run has as many again, in a test of their own: two processes share them.
PARTS = ["quick", "more"] if CASES else ["quick"]
FIRST = int(os.environ.get("CVKIT_FUZZ_FIRST", 0))
TOLD = os.environ.get("CVKIT_FUZZ_TOLD")
SECONDS = 60  # what takes longer hangs


# -- running cases -----------------------------------------------------------------------


def hunt(name, quick, case, share=1.0):
    """Run `case(random)` many times; fail with each kind of failure once, and how often it came.

    Args:
        name: of the target, part of each case's seed.
        quick: cases in the suite.
        case: raises nothing but `UserError`, after `random` has decided what it does. What it
            leaves in `case.made` is shown with a failure.
        share: of the cases of a long run, for targets that take long.
    """
    count, kinds, told = max(int(CASES * share), 1) if CASES else quick, {}, 0
    for number in range(FIRST, FIRST + count):
        case.made = None
        try:
            told += is_told(lambda: case(random.Random(f"{name} {number}")))  # noqa: B023
        except Exception as error:
            frames = [f"{Path(frame.filename).name}:{frame.lineno}"
                      for frame in traceback.extract_tb(error.__traceback__)
                      if Path(frame.filename).is_relative_to(ROOT / "cvkit")]
            kind = (type(error).__name__, frames[-1] if frames else "", re.sub(r"\d+", "", str(error))[:40])
            kinds.setdefault(kind, []).append((number, error, case.made, frames))
    print(f"fuzz: {name}: {count} cases, {told} told, {len(kinds)} kinds of failure")
    lines = [f"{len(found)} times, first in case {found[0][0]}: {found[0][1]!r:.600}\n"
             f"  at {' '.join(found[0][3][-4:])}\n  made {clipped(found[0][2])}"
             for found in sorted(kinds.values(), key=len, reverse=True)]
    assert not lines, f"{len(lines)} kinds of failure in {count} cases of {name}\n" + "\n".join(
        lines[:40])


def clipped(made):
    return re.sub(r"(\S{40})\S{60,}", r"\1…", repr(made))[:1200]


def is_told(action):
    """Run an action; return whether it ended in a `UserError`, whose message is looked at."""
    with warnings.catch_warnings(record=True) as caught, time_limit():
        warnings.simplefilter("always")
        try:
            action()
        except UserError as error:
            check_message(str(error))
            if TOLD:
                with open(TOLD, "a", encoding="utf-8", errors="replace") as file:
                    file.write(f"{error}\n")
            return True
        finally:
            # Pillow warns of each tag of a damaged TIFF; Python shows the same text once.
            kinds = {re.sub(r"\d+", "", str(warning.message)) for warning in caught}
            assert len(kinds) <= 5, f"{len(kinds)} warnings: {kinds}"
    return False


def check_message(text):
    """A message says something, is short enough to be read and shows no inner workings."""
    assert text.strip() and not text.startswith("None"), "an empty message"
    assert "Traceback" not in text and " object at 0x" not in text, text
    assert len(text) < 6000 and len(text.splitlines()) < 60, f"{len(text)} characters"


@contextlib.contextmanager
def time_limit():
    if not hasattr(signal, "SIGALRM"):  # Windows
        yield
        return

    def stop(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def less_memory():
    """Let what asks for far too much memory fail at once, instead of filling the machine."""
    resource = pytest.importorskip("resource")
    status = Path("/proc/self/statm")
    if not status.is_file():
        yield
        return
    used = int(status.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# -- odd values and edits of trees ---------------------------------------------------------

NUMBERS = [0, 1, -1, 2, 3, 5, 7, 8, 16, 31, 32, 33, 64, 100, -3, 0.5, 0.0, -0.0, 1.0, -1.0, 0.1, 0.9,
           0.999, 1e-3, 1.5, 2.0, 255, 256, 1e-300]
HUGE = [10**6, -10**6, 2**31, 2**63, 10**20, -2**63 - 1, 1e300, math.inf, -math.inf, math.nan]
WORDS = ["", " ", "x", "auto", "mean", "find", "cpu", "cuda", "cuda:x", "batch", "layer", "group",
         "loss", "accuracy", "NAME", "null", "true", "1e-3", "007", "...", "a.b", "*", "[", "{x",
         "Accuracy", "max", "min", "ünï✓", "日本語", "\u202eabc", "\x85", "\ufeff", "a\nb", "\t",
         "../..", "/", "%s {} {0}", "'", '"', "#", "-", "--help", "word" * 500, "\U0001f600"]


def odd(random, huge=True):
    """Return a value of a random type."""
    kind = random.randrange(10)
    if kind < 4:
        return random.choice(NUMBERS)
    if kind < 5:
        return random.choice(HUGE if huge else NUMBERS)
    if kind < 7:
        return random.choice(WORDS)
    if kind < 8:
        return random.choice([None, True, False])
    if kind < 9:
        return [odd(random, huge) for _ in range(random.randrange(4))]
    return {random.choice(["NAME", "a", "size", "p", *WORDS]): odd(random, huge)
            for _ in range(random.randrange(3))}


def misspelt(random, word):
    """Return a word with one edit, in another case, or stretched."""
    letters, place = list(word), random.randrange(len(word) + 1)
    kind = random.randrange(7)
    if kind == 0:
        letters.insert(place, random.choice(string.ascii_letters + "._- é"))
    elif kind == 1 and letters:
        letters.pop(place % len(letters))
    elif kind == 2 and len(letters) > 1:
        place = place % (len(letters) - 1)
        letters[place:place + 2] = letters[place + 1], letters[place]
    elif kind == 3:
        return word.swapcase()
    elif kind == 4:
        return word * random.choice([2, 300])
    elif kind == 5:
        return word.lower()
    else:
        return word + random.choice(WORDS)
    return "".join(letters)


def containers(tree):
    """Yield every mapping and list of a tree, itself first."""
    if isinstance(tree, (dict, list)):
        yield tree
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from containers(item)


def edit(random, tree, huge=True):
    """Change a tree of plain values in one random place."""
    spots = [(box, key) for box in containers(tree)
             for key in (box if isinstance(box, dict) else range(len(box)))]
    if not spots:
        tree["TRAIN" if isinstance(tree, dict) else 0] = odd(random, huge)
        return
    box, key = random.choice(spots)
    other_box, other_key = random.choice(spots)
    kind = random.randrange(14)
    if kind == 0:
        del box[key]
    elif kind in (1, 2):
        box[key] = odd(random, huge)
    elif kind == 3:
        box[key], other_box[other_key] = (copy.deepcopy(other_box[other_key]),
                                          copy.deepcopy(box[key]))
    elif kind == 4 and isinstance(box, dict):
        box[misspelt(random, str(key))] = box.pop(key)
    elif kind == 5 and isinstance(box, dict):
        box[misspelt(random, str(key))] = copy.deepcopy(box[key])
    elif kind == 6 and isinstance(box[key], str):
        box[key] = misspelt(random, box[key])
    elif kind == 7 and isinstance(box, list):
        random.shuffle(box)
    elif kind == 8 and isinstance(box, list):
        box.insert(random.randrange(len(box) + 1), copy.deepcopy(box[key]))
    elif kind in (9, 10) and isinstance(box[key], (int, float)):
        box[key] = random.choice(NUMBERS + HUGE if huge else NUMBERS)
    elif kind == 11:
        nodes = [node for node in containers(tree) if isinstance(node, dict) and NAME in node]
        if nodes:  # another component of the same or another kind
            registry = REGISTRIES[random.choice(list(REGISTRIES))]
            node = random.choice(nodes)
            node[NAME] = random.choice(list(registry))
            add_arguments(random, node, registry, huge)
    elif kind == 12:
        nodes = [node for node in containers(tree) if isinstance(node, dict) and NAME in node]
        for registry in REGISTRIES.values() if nodes else ():
            node = random.choice(nodes)
            if isinstance(node[NAME], str) and registry.find(node[NAME]):
                add_arguments(random, node, registry, huge)
    else:
        box[key] = random.choice([None, 3, "word", [], {}, [copy.deepcopy(box[key])],
                                  {"a": copy.deepcopy(box[key])}])


def add_arguments(random, node, registry, huge=True):
    """Give a node one or two arguments that its constructor has, of odd values."""
    entry = registry.find(node[NAME]) if isinstance(node[NAME], str) else None
    parameters = parameters_of(entry)[0] if entry else {}
    for key in random.sample(sorted(parameters), min(len(parameters), random.choice([1, 1, 2, 3]))):
        node[key] = fitting(random, parameters[key], huge)


def fitting(random, parameter, huge=True):
    """Return a value that a parameter may well be meant to take, or an odd one."""
    default = parameter.default
    if random.random() < 0.15:
        return odd(random, huge)
    if isinstance(default, bool):
        return random.choice([True, False])
    if isinstance(default, (int, float)) or default is parameter.empty:
        return random.choice(NUMBERS)
    if isinstance(default, (list, tuple)):
        return [random.choice(NUMBERS) for _ in default]
    if isinstance(default, str):
        return random.choice([default, *WORDS])
    return odd(random, huge)


def as_yaml(tree):
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data):
            return True
    return yaml.dump(tree, Dumper=Dumper, allow_unicode=True, sort_keys=False)


def mutations(content, random):
    """Yield ever more mutations of bytes: flipped, cut, inserted, swapped, repeated, zeroed."""
    while True:
        data = bytearray(content)
        for _ in range(random.choice([1, 1, 1, 2, 5, 20])):
            place = random.randrange(len(data) + 1)
            length = random.choice([1, 2, 4, 16, 300])
            kind = random.randrange(9)
            if kind < 3 and place < len(data):
                data[place] ^= 1 << random.randrange(8)
            elif kind == 3 and place < len(data):
                data[place] = random.choice([0, 255, 127, 128, random.randrange(256)])
            elif kind == 4:
                del data[place:]
            elif kind == 5:
                del data[place:place + length]
            elif kind == 6:
                data[place:place] = random.randbytes(length)
            elif kind == 7:
                data[place:place + length] = bytes(min(length, len(data) - place))
            else:
                start = random.randrange(len(data) + 1)
                data[place:place] = data[start:start + length]
        yield bytes(data)


def mutation(random, content):
    return next(mutations(content, random))


# -- configs -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def trees():
    """(folder of the file within configs/, tree): every config as written and as resolved."""
    found = [("", yaml.safe_load(TINY))]
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        found.append((path.parent.name.replace("configs", ""), yaml.safe_load(path.read_text())))
        with contextlib.suppress(UserError):  # a base alone is no config
            found.append(("", load_config(path).to_dict()))
    assert len(found) > 35
    return found


@pytest.fixture(scope="session")
def resolved(trees):
    return [load_config(path).to_dict() for path in (ROOT / "configs").glob("*.yaml")]


def load_and_dump(path):
    """Load a config, check its components, and see that it is the same when dumped and read."""
    config = load_config(path)
    check_components(config)
    again = read_config(config.dump(), "again")
    assert repr(again.to_dict()) == repr(config.to_dict())
    assert again.dump() == config.dump()
    assert repr(read_config(config.dump(origins=True), "again").to_dict()) == repr(config.to_dict())
    return config


BASES = ["", ".", "..", "_base_", "_base_/", "/", "fuzz.yaml", "_base_/fuzz.yaml", "gone.yaml",
         "resnet18_cifar10.yaml", "_base_/cifar10.yaml", "../configs/fuzz.yaml", "x" * 5000, "a\0b",
         "link.yaml", "circle.yaml", "pipe", "/dev/null", "~", 3, None, [], {}, [[]], [3], True,
         ["_base_/cifar10.yaml"] * 3, ["_base_/runtime.yaml", "circle.yaml"]]


@pytest.fixture
def configs(tmp_path):
    """A copy of configs/, with some traps."""
    folder = shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (folder / "circle.yaml").write_text("_BASE_: [_base_/runtime.yaml, circle.yaml]\n")
    (folder / "link.yaml").symlink_to("link.yaml")
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_configs_with_random_edits(trees, configs, part):
    def case(random):
        folder, tree = random.choice(trees)
        tree = copy.deepcopy(tree)
        for _ in range(random.randint(1, 4)):
            edit(random, tree)
        if random.random() < 0.1 and isinstance(tree, dict):
            tree["_BASE_"] = random.choice(BASES)
        path = configs / folder / "fuzz.yaml"
        case.made = tree
        try:
            path.write_text(as_yaml(tree), encoding="utf-8")
        except UnicodeEncodeError:
            return
        load_and_dump(path)

    hunt(f"config trees {part}", 250, case)


@pytest.mark.parametrize("part", PARTS)
def test_configs_with_damaged_text(configs, part):
    texts = [TINY.encode(), *(path.read_bytes() for path in (ROOT / "configs").glob("*.yaml"))]
    traps = [b"\t", b"\0", b"\r\n", b"\r", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80",
             b"  ", b"- ", b": ", b"&a ", b"*a", b"<<: ", b"!!int ", b"!x ", b"? ", b"---\n", b"...\n",
             b"|\n", b">", b"%YAML 9.9\n", b"[" * 2000, b"{a: " * 500, b"#", b"'", b'"', b'"\\x',
             b'"\\ud800"', b"\xe2\x80\xa8", b"1e", b".", b"-.", b"0x", b"9" * 5000, b"= ", b"@", b"`"]

    def case(random):
        content = bytearray(random.choice(texts))
        kind = random.randrange(5)
        if kind == 0:
            content = bytearray(mutation(random, bytes(content)))
        elif kind == 1:
            lines = content.split(b"\n")
            for _ in range(random.randint(1, 3)):
                place = random.randrange(len(lines))
                change = random.randrange(4)
                if change == 0:
                    lines[place] = lines[place][:random.randrange(len(lines[place]) + 1)]
                elif change == 1:
                    lines[place] = random.choice([b" ", b"  ", b"\t", b"   "]) + lines[place]
                elif change == 2:
                    lines.insert(place, lines[random.randrange(len(lines))])
                else:
                    lines[place] = lines[place].lstrip()
            content = random.choice([b"\n", b"\n", b"\r\n", b"\r"]).join(lines)
        else:
            for _ in range(random.randint(1, 3)):
                place = random.randrange(len(content) + 1)
                content[place:place] = random.choice(traps)
        case.made = bytes(content)[:1500]
        path = configs / "fuzz.yaml"
        path.write_bytes(bytes(content))
        load_and_dump(path)

    hunt(f"config texts {part}", 250, case)


# -- components and trainers ---------------------------------------------------------------


@pytest.fixture(scope="session")
def small_data():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    split = ImageSet.of(images, np.arange(12) % 3)
    return ImageData(("a", "b", "c"), split, split, 3, (16, 16), (0.5,) * 3, (0.2,) * 3)


def use_dataset(node, data):
    built = DATASETS.build(node, seed=0)
    assert len(built.train) and len(built.test) and built.train.image(0).ndim == 3


def use_transform(node, data):
    pipeline, normalize = build_pipeline([node], data, is_training=True)
    if normalize is not None:
        with contextlib.suppress(ValueError):  # which build_loaders makes a ConfigError of
            normalize.constants(3)
    pipeline.seed(0, 1)
    shapes = {pipeline(data.train.image(number)).shape for number in range(3)}
    if not pipeline.unbatched:
        images = torch.from_numpy(np.stack([pipeline.prepare(data.train.image(number))
                                            for number in range(3)]))
        batch = pipeline.augment_batch(images, pipeline.draw(0, 0, np.arange(3), images.shape[1:]))
        assert batch.dtype is torch.uint8 and shapes == {tuple(batch.shape[1:])}
    for transform in pipeline.mixing:
        transform.function(torch.zeros(4, 3, 8, 8), torch.arange(4) % 3)


def use_model(node, data):
    model = build_model(node, 3, (3, 16, 16))
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def use_loss(node, data):
    loss = build_loss(node, 3)
    logits = torch.randn(4, 3, requires_grad=True)
    loss(logits, torch.arange(4) % 3).backward()


def use_optimizer(node, data):
    model = torch.nn.Linear(3, 2, bias=False)
    optimizer = build_optimizer(node, parameter_groups(node, model))
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()


def use_scheduler(node, data):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    schedule = build_schedule(node, optimizer, epochs=3, steps_per_epoch=4)
    for _ in range(3):
        for _ in range(4):
            optimizer.step()
            schedule.after_step()
        schedule.after_epoch(0.5, 0.5)


def use_metric(node, data):
    for metric in build_metrics([node], ["a", "b", "c"]):
        metric.update(torch.randn(4, 3), torch.arange(4) % 3)
        metric.compute()


USES = {DATASETS: use_dataset, TRANSFORMS: use_transform, MODELS: use_model, LOSSES: use_loss,
        OPTIMIZERS: use_optimizer, SCHEDULERS: use_scheduler, METRICS: use_metric,
        VISUALIZERS: lambda node, data: VISUALIZERS.check(node)}
QUICK = {MODELS: 12, DATASETS: 12, METRICS: 40, VISUALIZERS: 40}


def arguments_for(random, registry, name):
    parameters, _ = parameters_of(registry.get(name))
    node = {NAME: name}
    for key, parameter in parameters.items():
        if key in registry.reserved:
            continue
        is_needed = parameter.default is parameter.empty and key not in registry.offers
        if is_needed or key in registry.required or random.random() < 0.3:
            node[key] = fitting(random, parameter)
    if random.random() < 0.1:
        node[misspelt(random, random.choice(list(node)))] = odd(random)
    return node


@pytest.mark.parametrize("registry", USES, ids=lambda registry: registry.kind)
def test_components_with_odd_arguments(registry, small_data, tmp_path, less_memory):
    paint(tmp_path / "images", "train", 2, np.random.default_rng(0))
    # The first of torchvision's models are as good as the others, which take seconds each.
    names = registry.own * 3 + list(registry)[:12] if registry is MODELS else (
        registry.own * 3 + list(registry) if registry is DATASETS else list(registry))
    files = sorted((tmp_path / "images" / "train").rglob("*.png"))
    table = tmp_path / "images" / "labels.csv"
    table.write_text("\n".join(["file,label", *(f"{file.relative_to(table.parent)},{file.parent.name}" for file in files)]))

    def case(random):
        node = arguments_for(random, registry, random.choice(names))
        if node[NAME] == "ImageFolder" and random.random() < 0.8:
            node["root"] = str(tmp_path / "images" / "train")
        if node[NAME] == "CSVDataset" and random.random() < 0.8:
            node["path"] = str(table)
        if node[NAME] == "Sequential" and random.random() < 0.9:
            node["layers"] = [arguments_for(random, LAYERS, random.choice(list(LAYERS)))
                              for _ in range(random.randint(1, 3))] + [{NAME: "Flatten"}, {NAME: "Linear"}]
        if registry is DATASETS and "download" in parameters_of(registry.get(node[NAME]))[0]:
            node["download"] = False  # or all the world's would be here
        if registry is MODELS and "width" in node and random.random() < 0.8:
            node["width"] = random.choice([-1, 0, 1, 2, 3, 4, 8, 16])
        case.made = node
        USES[registry](Config(node), small_data)

    hunt(f"{registry.kind} arguments", QUICK.get(registry, 150), case,
         share={MODELS: 0.02, DATASETS: 0.05}.get(registry, 0.3))


RICH = """
MODEL: {NAME: resnet18, width: 4, norm: batch}
DATA:
  DATASET: {NAME: ImageFolder, root: images}
  BATCH_SIZE: 8
  TRAIN_TRANSFORMS:
    - {NAME: Resize, height: 16, width: 16}
    - {NAME: RandomCrop, size: 16, padding: 2, fill: mean}
    - {NAME: OneOf, transforms: [{NAME: HorizontalFlip, p: 1.0}, {NAME: Rotate, limit: 5}]}
    - {NAME: CutOut, size: 4}
    - {NAME: MixUp, alpha: 0.2}
  TEST_TRANSFORMS: [{NAME: Resize, height: 16, width: 16}]
LOSS: {NAME: CrossEntropyLoss, label_smoothing: 0.1}
OPTIMIZER: {NAME: AdamW, lr: 0.01, betas: [0.9, 0.99], weight_decay: 0.1}
SCHEDULER: {NAME: OneCycleLR, pct_start: 0.3}
METRICS: [{NAME: TopKAccuracy, k: 2}, {NAME: PerClassAccuracy}]
VISUALIZERS: [{NAME: cam, count: 3}]
TRAIN: {EPOCHS: 3, EMA_DECAY: 0.9, CLIP_GRAD_NORM: 1.0, WARMUP_EPOCHS: 0.5, ACCUMULATE: 2}
REQUIRE: {only_norm: batch, DATA: {BATCH_SIZE: 8}, without: [Dropout], parameters: 44000, cam_map: 1}
"""


def sound_edit(random, tree):
    """Change a tree in one place into what may well be meant: right names, right types."""
    kind = random.randrange(6)
    if kind == 0:
        section, schema = random.choice([(tree, SCHEMA), (tree["DATA"], SCHEMA["DATA"]),
                                         (tree["TRAIN"], SCHEMA["TRAIN"])])
        keys = {key: spec for key, spec in schema.items() if isinstance(spec, Key)
                and key not in ("COMPILE", "WORKERS", "IMPORTS", "DEVICE", "OUTPUT_DIR")}
        key = random.choice(list(keys))
        section[key] = (random.choice(keys[key].choices) if keys[key].choices
                        else typed(random, keys[key].default))
        return
    spots = [(tree, "MODEL", MODELS), (tree["DATA"], "DATASET", DATASETS), (tree, "LOSS", LOSSES),
             (tree, "OPTIMIZER", OPTIMIZERS), (tree, "SCHEDULER", SCHEDULERS)]
    for box, key, registry in ((tree["DATA"], "TRAIN_TRANSFORMS", TRANSFORMS),
                               (tree["DATA"], "TEST_TRANSFORMS", TRANSFORMS),
                               (tree, "METRICS", METRICS)):
        spots += [(box.get(key, []), number, registry) for number in range(len(box.get(key, [])))]
    box, key, registry = random.choice(spots)
    if kind == 1 and isinstance(box, list):
        random.choice([lambda: random.shuffle(box), lambda: box.pop(key),
                       lambda: box.append(copy.deepcopy(box[key]))])()
    elif kind < 3 and registry not in (DATASETS, MODELS):
        box[key] = {**arguments_for(random, registry, random.choice(list(registry)))}
        if registry is OPTIMIZERS:
            box[key]["lr"] = 0.01
    elif key in box or isinstance(key, int):
        entry = registry.find(box[key][NAME])
        parameters = {name: parameter for name, parameter in parameters_of(entry)[0].items()
                      if name not in registry.reserved}
        if parameters:
            name = random.choice(list(parameters))
            box[key][name] = typed(random, parameters[name].default)


def typed(random, default):
    """Return another value of a default's type."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return random.choice([value for value in NUMBERS if isinstance(value, int)])
    if isinstance(default, float):
        return random.choice(NUMBERS)
    if isinstance(default, (list, tuple)):
        return [typed(random, item) for item in default]
    return random.choice([1, 2, 0.5, 8, 0, -1, [1, 2], [0.5, 0.5], None, "batch", "mean"])


@pytest.mark.parametrize("part", PARTS)
def test_trainers_of_odd_configs(tmp_path, less_memory, part):
    for split in ("train", "test"):
        paint(tmp_path / "images", split, 4, np.random.default_rng(0))
    rich = yaml.safe_load(RICH)
    tiny = {**rich, **yaml.safe_load(TINY)}
    for tree in (rich, tiny):
        path = tmp_path / "fuzz.yaml"
        path.write_text(as_yaml({**tree, "REQUIRE": None}))
        with contextlib.redirect_stdout(io.StringIO()):
            check(load_config(path))

    def case(random):
        tree = copy.deepcopy(random.choice([rich, rich, tiny]))
        for _ in range(random.choice([1, 1, 1, 2, 3])):
            sound_edit(random, tree)
        if random.random() < 0.1:
            edit(random, tree, huge=random.random() < 0.2)
        if not isinstance(tree.get("REQUIRE"), dict) or random.random() < 0.7:
            tree["REQUIRE"] = None
        case.made = tree
        path = tmp_path / "fuzz.yaml"
        path.write_text(as_yaml(tree), encoding="utf-8")
        config = load_and_dump(path)
        if {"CIFAR10", "CIFAR100", "MNIST", "FashionMNIST"} & {config.DATA.DATASET.NAME}:
            return  # which would look for a network
        if config.MODEL.get("weights") is not None or config.TRAIN.COMPILE:
            return
        if config.MODEL.get("width", 0) > 100:
            return  # training runs out of memory, which is no mistake to be told
        with contextlib.redirect_stdout(io.StringIO()):
            check(config)

    hunt(f"trainers {part}", 40, case, share=0.03)


# -- command lines -------------------------------------------------------------------------

WORDS_OF_TOOLS = {
    "train.py": ["--check", "--print-config", "--resume", "--chek", "--epochs", "--resume=", "--lr",
                 "auto", "runs/tiny", "RUN", "--help", "-h", "-1", "-1e-3", "--", "-x", "-.5"],
    "evaluate.py": ["--run", "RUN", "--runs", "gone", "tiny.yaml", "--ru", "-r", "--"],
    "visualize.py": ["--run", "RUN", "--cam", "--cam-method", "GradCAM", "--cam-layer", "layer3",
                     "--misclassified", "--misclassifed", "5", "0", "-5", "ten", "--curves", "--list",
                     "--confusion", "--out", "out", "--format", "svg", "gif", "--dpi", "1", "--all",
                     "--report", "--dataset", "--lr-finder", "--cam-count", "--samples-count", "--",
                     "--summary", "cam", "--cam=3", "--cam-method=", "--misclassified-true-class",
                     "red", "--disagreements", "--", "-", "---", "--=", "--cam-", "--run=", "--out="],
    "registry.py": ["model", "transform", "modell", "CutOut", "resnet18", "--import", "tiny.yaml",
                    "gone.py", "--imports", "optimizer", "SGD", "--", "-m", "models", "MODEL"],
    "compare.py": ["RUN", "RUN", "OTHER", "runs", "gone", "--sort", "--csv", "epochs", "a.csv", "--curves",
                   "--disagreements", "0", "-1", "x", "--out", "out", "--srot", "tiny.yaml", "--"],
    "sweep.py": ["--status", "--workers", "2", "0", "--stauts", "SWEEP.TRIALS", "SWEEP.SPACE", "SWEEP",
                 "SWEEP.SAMPLER.NAME", "SWEEP.SPACE.OPTIMIZER.lr", "search.yaml", "--worker", "--"],
    "find_lr.py": ["--steps", "--step", "--lowest", "--highest", "--out", "2", "0", "-1", "1e-5", "1",
                   "nan", "inf", "x", "--check", "--", "tiny.yaml"],
}
KEYS = ["TRAIN.EPOCHS", "OPTIMIZER.lr", "MODEL.NAME", "MODEL", "DATA", "SEED", "TRAIN.EPOCS",
        "DATA.TRAIN_TRANSFORMS.0.size", "DATA.TRAIN_TRANSFORMS.9.size", "DATA.TRAIN_TRANSFORMS",
        "DATA.TRAIN_TRANSFORMS.-1", "TRAIN.EPOCHS.x", "x", "_BASE_", "NAME", ".", "a..b", "IMPORTS",
        "OPTIMIZER.lr.x.y", "LOSS.NAME", "SCHEDULER", "REQUIRE", "OUTPUT_DIR", "DEVICE", "TRAIN",
        "TRAIN.EPOCHS=3", "MODEL.width=4", "DATA.DATASET.root", "0", "0.0", "TRAIN.0"]
VALUES = ["3", "0", "-1", "-1e-3", "resnet34", "[]", "{}", "[1", "{NAME: SGD}", "null", "{a: &b 1}",
          "!x", "yes", "'", "1e400", "[[[[]]]]", "9" * 5000, "{NAME: StepLR, step_size: 1}",
          "[{NAME: CutOut, size: 4}]", "my.py", "[my.py]", "[os.path]", "[.x]", "['']"]


@pytest.mark.parametrize("name", WORDS_OF_TOOLS)
def test_command_lines(tool, run, name, monkeypatch):
    Path("tiny.yaml").write_text(TINY)
    Path("search.yaml").write_text(
        "_BASE_: tiny.yaml\nSWEEP: {SPACE: {OPTIMIZER.lr: [0.1, 0.2], MODEL.norm: [batch, layer]}}\n")
    monkeypatch.setenv("COLUMNS", "100")
    flags, texts = WORDS_OF_TOOLS[name], [word for word in WORDS if "\0" not in word]
    folders = {"RUN": run.folder, "OTHER": shutil.copytree(run.folder, run.folder.parent / "other")}

    def words(random):
        for _ in range(random.choice([0, 1, 1, 2, 2, 3, 4, 6])):
            kind = random.randrange(8)
            if kind < 3:
                yield random.choice(flags)
            elif kind < 4:
                yield misspelt(random, random.choice(flags))
            elif kind < 6:
                yield random.choice(KEYS)
                if random.random() < 0.9:
                    yield random.choice([*VALUES, *texts])
            elif kind < 7:
                yield random.choice(texts)
            else:
                yield random.choice(["tiny.yaml", "gone.yaml", "runs", ".", "tiny.yml"])

    def case(random):
        found = [str(folders.get(word, word)) for word in words(random)]
        if name in ("train.py", "find_lr.py", "visualize.py") and random.random() < 0.8:
            found.insert(0, "tiny.yaml")
        if name == "train.py":  # it is not to train
            found.insert(0, random.choice(["--check", "--print-config", "--print-config"]))
        if name == "sweep.py":
            found.insert(0, random.choice(["search.yaml", "search.yaml", "tiny.yaml"]))
            found = [word for word in found if word != "--worker"] + ["--status"]
        if name == "find_lr.py":
            found += random.choice([[], ["--steps", "2"], ["--stesp", "2"]])
        case.made = found
        error = None
        with contextlib.redirect_stdout(io.StringIO()):
            code, _, error = tool(name, *found)
        assert code in (0, 2), f"exit code {code}: {error}"
        if code:
            check_message(error)
            assert error.startswith(("error: ", "usage: ")), error

    slow = name in ("evaluate.py", "find_lr.py", "visualize.py", "compare.py")
    hunt(name, 20 if slow else 150, case, share=0.01 if slow else 0.1)


# -- image files ---------------------------------------------------------------------------


def samples():
    """Return {name: bytes} of images in every format and mode that an image folder may hold."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (13, 17, 4), dtype=np.uint8)
    colour = Image.fromarray(pixels[:, :, :3])
    modes = {"RGB": colour, "L": colour.convert("L"), "P": colour.convert("P"),
             "1": colour.convert("1"), "RGBA": Image.fromarray(pixels), "CMYK": colour.convert("CMYK"),
             "LA": colour.convert("LA"), "I;16": Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 200),
             "F": colour.convert("F"), "I": colour.convert("I"), "YCbCr": colour.convert("YCbCr")}
    files = {}
    for ending in ("png", "jpg", "bmp", "gif", "webp", "tif", "ppm", "pgm"):
        for mode, image in modes.items():
            buffer = io.BytesIO()
            with contextlib.suppress(OSError, ValueError):  # a mode that the format does not have
                image.save(buffer, {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(ending, ending))
                files[f"{mode.replace(';', '')}.{ending}"] = buffer.getvalue()
    for ending, options in (("gif", {}), ("webp", {}), ("png", {}), ("tif", {})):
        buffer = io.BytesIO()
        colour.save(buffer, {"tif": "TIFF"}.get(ending, ending), save_all=True,
                    append_images=[colour.rotate(90), colour.rotate(180)], **options)
        files[f"animated.{ending}"] = buffer.getvalue()
    for kind in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits", "group4"):
        buffer = io.BytesIO()
        with contextlib.suppress(OSError, ValueError):
            (modes["1"] if kind == "group4" else colour).save(buffer, "TIFF", compression=kind)
            files[f"{kind}.tif"] = buffer.getvalue()
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(buffer, "JPEG", exif=exif, progressive=True)
    files["turned.jpg"] = buffer.getvalue()
    return {name: content for name, content in files.items() if content}


@pytest.mark.parametrize("part", PARTS)
def test_image_files_with_garbage(tmp_path, part, less_memory):
    files = samples()
    assert len(files) > 35

    def case(random):
        name = random.choice(sorted(files))
        content = files[name]
        kind = random.randrange(12)
        if kind == 0:  # the beginning of one format, the rest of another
            cut = random.randrange(1, 60)
            content = files[random.choice(sorted(files))][:cut] + content[cut:]
        elif kind == 1:  # sizes stand in the first bytes of all formats
            place = random.randrange(min(64, len(content)))
            content = content[:place] + random.choice(
                [b"\xff\xff\xff\x7f", b"\xff\xff", b"\0\0", b"\x7f\xff\xff\xff", b"99999 99999"]
            ) + content[place + random.choice([2, 4]):]
        elif kind == 2:
            content = random.choice([b"", b"\0" * 100, content + content, content[::-1],
                                     content + random.randbytes(50), random.randbytes(200)])
        elif kind > 2:
            content = mutation(random, content)
        path = tmp_path / f"case.{random.choice([name.split('.')[-1]] * 3 + ['png', 'jpg', 'tif'])}"
        path.write_bytes(content)
        case.made = name, kind, content[:80]
        channels = random.choice([1, 3])
        try:
            pixels = ImageFiles([str(path)], channels)[0]
        except UserError as error:
            assert str(path) in str(error)
            raise
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == channels
        assert pixels.size

    hunt(f"image files {part}", 1500, case)


def test_what_is_no_file_but_is_called_like_an_image(tmp_path):
    (tmp_path / "x.png").mkdir()
    (tmp_path / "link.png").symlink_to("link.png")
    for name in ("x.png", "link.png"):
        assert is_told(lambda: ImageFiles([str(tmp_path / name)])[0])  # noqa: B023


# -- checkpoints and predictions ---------------------------------------------------------------


def same(left, right):
    """Whether two values that files held are equal, tensors and arrays bit by bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(
            left, right)
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.dtype == right.dtype and np.array_equal(
            left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and list(left) == list(right) and all(
            same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(
            map(same, left, right))
    return type(left) is type(right) and repr(left) == repr(right)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["checkpoints/last.pt", "predictions.npz"])
def test_damaged_results_are_told_and_never_taken_for_others(run, name, part, less_memory):
    kind = Checkpoint if name.endswith(".pt") else Predictions
    path = run.folder / name
    content = path.read_bytes()
    whole = [getattr(kind.load(path), field) for field in kind.__dataclass_fields__]

    def case(random):
        damaged = mutation(random, content)
        length = min(len(damaged), len(content))
        differ = np.flatnonzero(np.frombuffer(damaged, np.uint8, length)
                                != np.frombuffer(content, np.uint8, length))
        case.made = f"{len(damaged)} of {len(content)} bytes, first change at {differ[:1]}"
        path.write_bytes(damaged)
        found = kind.load(path)
        for field, before in zip(kind.__dataclass_fields__, whole, strict=True):
            if not same(before, getattr(found, field)):
                raise AssertionError(f"{field} has changed unnoticed")

    hunt(f"{path.name} {part}", 150, case, share=0.1)
