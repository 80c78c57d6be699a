"""What is silently wrong is told, by its figures and its fix; what is right or usual is not."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, paint
from made_up import photo
from PIL import Image
from torch import nn

from cvkit.config import load_config
from cvkit.data import ImageData, ImageFiles, ImageSet, build_data, build_loaders, duplicates
from cvkit.registry import DATASETS, LOSSES, MODELS, SCHEDULERS
from cvkit.reporting import checks
from cvkit.runs.predictions import Predictions
from cvkit.session import check, train
from cvkit.training.losses import build_loss
from cvkit.training.schedulers import build_schedule

CPU = torch.device("cpu")


def pixels(count, seed, low=0, high=256, size=16):
    return np.random.default_rng(seed).integers(low, high, (count, size, size, 3), dtype=np.uint8)


def data_of(train, test, val=None, classes=("ant", "bee"), mean=(0.5,) * 3, std=(0.25,) * 3):
    """Return data of arrays, or of (images, labels), labelled in turn otherwise."""
    def split(images):
        images, labels = images if isinstance(images, tuple) else (images, np.arange(len(images)) % 2)
        return ImageSet.of(images, labels)

    train = split(train)
    return ImageData(classes, train, split(test), 3, train.images.shape[1:3], mean, std,
                     None if val is None else split(val))


@pytest.fixture
def tiny(quick):
    return quick


ONE_CLASS = "images are taken for"  # as after a few steps they may be


def warnings_of(text, besides=ONE_CLASS):
    return [line for line in text.splitlines() if line.startswith("warning    ")
            and (besides is None or besides not in line)]


def trained(tiny, capsys, **overrides):
    """Return the warnings of a training: those of train.log, which are those of the screen."""
    capsys.readouterr()
    run = train(load_config(tiny, {"TRAIN.EPOCHS": 1, **overrides}))
    in_log = warnings_of((run.folder / "train.log").read_text())
    assert warnings_of(capsys.readouterr().out) == in_log
    return in_log


# -- uneven classes ----------------------------------------------------------------------------


def uneven(counts=(60, 6, 30), classes=("ant", "bee", "cat")):
    labels = np.repeat(np.arange(len(counts)), counts)
    return data_of((pixels(len(labels), 0), labels), (pixels(6, 1), np.arange(6) % 3), classes=classes)


def test_a_class_much_rarer_than_another_is_told_once_before_training(tiny, capsys):
    DATASETS.register("rare")(uneven)
    overrides = {"DATA.DATASET": {"NAME": "rare"}, "DATA.LIMIT": 0, "DATA.TRAIN_TRANSFORMS": []}
    line, = trained(tiny, capsys, **overrides, **{"TRAIN.EPOCHS": 2})
    assert line == ('warning    train has 60 images of class ant and 6 of bee: the model may come to neglect rare '
                    'classes. If they matter as much, weigh them by LOSS.weight balanced, '
                    'or draw as many of each by DATA.SAMPLER "{NAME: balanced}"; METRICS "[{NAME: BalancedAccuracy}]" '
                    'tells how it is with each counted alike')
    check(load_config(tiny, overrides))
    assert warnings_of(capsys.readouterr().out) == [line]
    known = checks.uneven_classes(load_config(tiny, {"METRICS": [{"NAME": "BalancedAccuracy"}]}), uneven())
    assert f"warning    {known['uneven']}" == line.partition("; METRICS")[0]
    assert trained(tiny, capsys, **overrides, **{"LOSS.weight": "balanced"}) == []


@pytest.mark.parametrize("counts, overrides, tells", [
    ((60, 6, 30), {}, True), ((60, 7, 30), {}, False), ((60, 0, 30), {}, False), ((60, 1, 0), {}, True),
    ((60, 6, 30), {"DATA.SAMPLER": {"NAME": "balanced"}}, False),
    ((60, 6, 30), {"LOSS": {"NAME": "CrossEntropyLoss", "weight": [1, 2, 3]}}, False),
    ((60, 6, 30), {"LOSS": {"NAME": "BCEWithLogitsLoss", "pos_weight": [1, 2, 3]}}, False),
    ((60, 6, 30), {"LOSS": {"NAME": "CrossEntropyLoss", "weight": None}}, True),
    ((60, 6, 30), {"LOSS": {"NAME": "FocalLoss"}}, False), ((60, 6, 30), {"LOSS": {"NAME": "MSELoss"}}, True),
    ((60, 6, 30), {"LOSS": {"NAME": "counted"}}, False), ((60, 6, 30), {"LOSS": {"NAME": "other"}}, True)])
def test_whether_something_is_done_for_rare_classes(tiny, counts, overrides, tells):
    LOSSES.register("counted")(lambda class_counts: nn.CrossEntropyLoss())
    LOSSES.register("other")(lambda: nn.CrossEntropyLoss())
    config = load_config(tiny, overrides)
    found = checks.uneven_classes(config, uneven(counts))
    assert bool(found) == tells
    if tells:
        may_weigh = config.LOSS.NAME == "CrossEntropyLoss"
        assert ("LOSS.weight balanced" in found["uneven"]) == may_weigh


@pytest.mark.parametrize("counts, weight, tells", [((60, 20, 30), "balanced", True), ((60, 50, 60), "balanced", False),
                                                    ((60, 20, 30), None, False)])
def test_making_up_for_rare_classes_twice_is_told(tiny, counts, weight, tells):
    config = load_config(tiny, {"DATA.SAMPLER": {"NAME": "balanced"}, "LOSS.weight": weight})
    assert ("twice" in checks.uneven_classes(config, uneven(counts))) == tells


@pytest.mark.parametrize("settings, tells", [
    ({}, False), ({"TRAIN.FREEZE": ["backbone"]}, True), ({"TRAIN.FREEZE": ["backbone"], "MODEL.INIT_FROM": "x.pt"}, False),
    ({"FINE_TUNE": {}, "MODEL": {"NAME": "resnet50", "weights": "DEFAULT"}}, False), ({"FINE_TUNE": {}}, True)])
def test_frozen_weights_that_nothing_has_trained_are_told(tiny, settings, tells):
    told = checks.frozen_untrained(load_config(tiny, settings))
    assert bool(told) == tells
    if tells:
        assert told["frozen"].endswith("FINE_TUNE null trains all" if "FINE_TUNE" in settings else
                                       "TRAIN.FREEZE [] and TRAIN.UNFREEZE null train all")


def test_that_all_images_are_taken_for_one_class_is_told_once(tiny, capsys):
    @MODELS.register()
    def biased(num_classes):
        last = nn.Linear(3072, num_classes)
        nn.init.constant_(last.bias, 0)
        last.bias.data[3] = 99
        return nn.Sequential(nn.Flatten(), last)

    capsys.readouterr()
    train(load_config(tiny, {"MODEL": {"NAME": "biased"}, "OPTIMIZER.lr": 1e-6}))
    line, = warnings_of(capsys.readouterr().out, besides=None)
    assert line == ('warning    after epoch 1 all 150 test images are taken for 3, though they are of 10 classes. If '
                    'that stays so, lower OPTIMIZER.lr, warm up (TRAIN.WARMUP_EPOCHS 1) or, where most images are of '
                    'that class, draw as many of each (DATA.SAMPLER "{NAME: balanced}")')


@pytest.mark.parametrize("true, predicted", [([0, 1], [0, 1]), ([1, 1], [1, 1]), ([1, 1], [0, 0])])
def test_several_predicted_classes_or_images_of_one_alone_are_not_told(tiny, true, predicted):
    found = Predictions(np.arange(2), np.array(true), np.array(predicted), np.eye(2, dtype=np.float32),
                        ["a", "b"], 1, 0.5)
    assert checks.one_class_alone(load_config(tiny), "test", 1, found) == {}


# -- images in two splits ------------------------------------------------------------------


def test_test_images_that_are_trained_on_are_told_on_the_screen_in_the_log_and_by_check(
        tiny, capsys):
    @DATASETS.register()
    def leaky():
        train, test = pixels(60, 0), pixels(40, 1)
        test[7], test[30] = train[11], train[4]
        return data_of(train, test)

    overrides = {"DATA.DATASET": {"NAME": "leaky"}, "DATA.LIMIT": 0,
                 "DATA.TRAIN_TRANSFORMS": [], "DATA.BATCH_SIZE": 8}
    line, = trained(tiny, capsys, **overrides)
    assert line == ("warning    train holds 2 of the 40 test images too (test 7 is train 11, test 30 is train 4): "
                    "the test accuracy counts what was learned by heart. Take them out of one split of "
                    "DATA.DATASET leaky")
    check(load_config(tiny, overrides))
    assert warnings_of(capsys.readouterr().out) == [line]


def test_validation_images_are_compared_as_well_and_only_the_images_that_are_used(tiny):
    config = load_config(tiny)
    train = pixels(60, 0)
    val = np.concatenate([pixels(9, 1), train[50:51]])
    found = checks.overlaps(config, data_of(train, pixels(20, 2), val))
    assert list(found) == ["overlap val"]
    assert "train holds 1 of the 10 val images too (val 9 is train 50): the val accuracy" in found["overlap val"]
    whole = data_of(train, pixels(20, 2), val)
    limited = whole.with_splits(train=whole.train.take(np.arange(50)))
    assert checks.overlaps(config, limited) == {}


def test_images_that_differ_a_little_are_nearly_train_images_and_those_of_another_crop_are_not(tiny):
    config, train = load_config(tiny), pixels(60, 0)
    test = np.concatenate([train[:3], pixels(17, 5)])
    test[:2, 15, 15, 2] ^= 1
    said = checks.overlaps(config, data_of(train, test))["overlap test"]
    assert said.startswith("train holds 1 of the 20 test images too, and 2 more nearly (test 2 is train 2, test 0 is nearly "
                           "train 0, test 1 is nearly train 1): the test accuracy counts")
    assert said.endswith("after a look at them: python tools/visualize.py CONFIG --duplicates")
    cut = replace(data_of(train, test), image_size=None, test=ImageSet.of(train[:, :8], [0] * 60))
    assert duplicates.duplicates(cut) == {}


def test_the_few_duplicates_of_a_published_set_are_left_alone(tiny):
    train, test = pixels(20, 0, size=4), pixels(1000, 1, size=4)
    test[5] = train[3]
    assert checks.overlaps(load_config(tiny), data_of(train, test)) == {}
    test[6] = train[3]
    assert "train holds 2 of the 1,000 test" in checks.overlaps(load_config(tiny), data_of(train, test))["overlap test"]


def image_folder(tiny, root):
    config = load_config(tiny, {"DATA.DATASET": {"NAME": "ImageFolder", "root": str(root)}, "DATA.LIMIT": 0})
    return config, build_data(config)


def test_files_are_compared_by_content_whatever_they_are_called(tiny, tmp_path):
    random = np.random.default_rng(0)
    paint(tmp_path / "x", "train", 8, random)
    paint(tmp_path / "x", "test", 8, random)
    assert checks.overlaps(*image_folder(tiny, tmp_path / "x")) == {}
    ours, theirs = tmp_path / "x" / "train" / "red" / "003.png", tmp_path / "x" / "test" / "blue" / "new.png"
    shutil.copy(ours, theirs)
    assert checks.overlaps(*image_folder(tiny, tmp_path / "x")) == {"overlap test": (
        f"train holds at least 1 of the 25 test images too (test {theirs} is train {ours}): the test accuracy "
        "counts what was learned by heart. Take them out of one split of DATA.DATASET ImageFolder, "
        f"DATA.DATASET.root {tmp_path / 'x'}")}


def test_of_many_duplicates_three_are_shown_and_the_run_lists_them_all(tiny, capsys):
    @DATASETS.register()
    def copied():
        train, test = pixels(60, 0), pixels(40, 1)
        test[:25] = train[10:35]
        return data_of(train, test)

    line, = trained(tiny, capsys, **{"DATA.DATASET": {"NAME": "copied"}, "DATA.LIMIT": 0,
                                     "DATA.TRAIN_TRANSFORMS": []})
    assert ("25 of the 40 test images too (test 0 is train 10, test 1 is train 11, test 2 is train 12 and 22 more, "
            "which a run lists in its duplicates.txt): the test accuracy") in line
    path, = tiny.parent.glob("runs/tiny/*/duplicates.txt")
    assert path.read_text().splitlines() == [f"test {n} is train {n + 10}" for n in range(25)]


def test_bitmaps_of_one_size_are_told_apart_and_a_whole_copied_folder_is_found_quickly(tmp_path, monkeypatch):
    def files(name, images):
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{number}.bmp")
        return ImageSet.of(ImageFiles([str(tmp_path / name / f"{n}.bmp") for n in range(len(images))]),
                           [0] * len(images))

    train = pixels(150, 0)
    near = train.copy()
    near[:, 0, 0] ^= 1  # far from the middle of the file
    same, other = files("train", train), files("near", near)
    assert duplicates.shared_files(same, other) == []
    found = duplicates.shared_files(same, same)
    assert len(found) == 100 and all(ours == theirs for ours, theirs in found)
    opened = []
    monkeypatch.setattr(duplicates, "_FILES_READ", 20)
    monkeypatch.setattr(duplicates, "_OTHER_FILES", 50)
    middle = duplicates._middle
    monkeypatch.setattr(duplicates, "_middle", lambda path: opened.append(path) or middle(path))
    assert duplicates.shared_files(same, same) and len(opened) <= 70


def test_files_of_nearly_the_same_picture_are_told_unless_there_are_too_many_to_decode(tiny, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    paint(tmp_path / "x", "train", 8, random)
    paint(tmp_path / "x", "test", 8, random)
    ours, theirs = tmp_path / "x" / "train" / "red" / "003.png", tmp_path / "x" / "test" / "red" / "002.png"
    image = Image.fromarray(photo(random))
    image.save(ours)
    image.resize((40, 40), Image.Resampling.BICUBIC).save(theirs)
    said = checks.overlaps(*image_folder(tiny, tmp_path / "x"))["overlap test"]
    assert f"at least 1 of the 24 test images, or nearly so (test {theirs} is nearly train {ours})" in said
    monkeypatch.setattr(duplicates, "_FILES_DECODED", 47)
    assert checks.overlaps(*image_folder(tiny, tmp_path / "x")) == {}


def test_a_file_that_has_gone_is_for_training_to_tell(tiny):
    images = ImageSet.of(ImageFiles(["gone.png"]), [0])
    data = data_of(pixels(4, 0), pixels(4, 1)).with_splits(train=images, test=images)
    assert checks.overlaps(load_config(tiny), data) == {}


# -- classes without images ----------------------------------------------------------------


def test_a_class_without_images_is_named(tiny, capsys):
    @DATASETS.register()
    def gaps():
        return data_of((pixels(60, 0), np.arange(60) % 2), (pixels(40, 1), np.arange(40) % 2 * 2),
                       classes=("ant", "bee", "cat"))

    first, second = trained(tiny, capsys, **{
        "DATA.DATASET": {"NAME": "gaps"}, "DATA.TRAIN_TRANSFORMS": [], "DATA.LIMIT": 0})
    assert first == ("warning    1 of 3 classes without train images: cat; the model cannot learn them. "
                     "Add images to DATA.DATASET gaps, or take what has none out of its classes")
    assert "1 of 3 classes without test images: bee; the test accuracy says nothing of them" in second


def test_a_class_without_any_images_is_one_warning_and_many_are_counted(tiny):
    classes = tuple(f"c{number}" for number in range(10))
    text, = checks.missing_classes(load_config(tiny), data_of(
        pixels(6, 0), pixels(4, 1), pixels(4, 2), classes=classes)).values()
    assert "8 of 10 classes without train and val and test images: c2, c3, c4, c5, c6 and 3 more; the model" in text


@pytest.mark.parametrize("overrides", [{"DATA.LIMIT": 10}, {"DATA.LIMIT": 0, "DATA.VAL_FRACTION": 0.01}])
def test_few_images_of_each_class_are_enough(tiny, overrides):
    config = load_config(tiny, overrides)
    assert checks.missing_classes(config, build_data(config)) == {}


# -- test images that are drawn ------------------------------------------------------------


CROP, BLUR = {"NAME": "RandomCrop", "size": 16, "padding": 2}, {"NAME": "GaussianBlur", "p": 0.3}


@pytest.mark.parametrize("nodes, drawing", [
    ([], None), ([{"NAME": "Resize", "height": 20, "width": 20}, {"NAME": "CenterCrop", "height": 16, "width": 16}], None),
    ([{"NAME": "Equalize", "p": 1.0}, {"NAME": "Shift", "down": 1}], None), ([{"NAME": "HorizontalFlip"}], "HorizontalFlip"),
    ([{"NAME": "Equalize", "p": 1.0}, CROP, {"NAME": "HorizontalFlip", "p": 1.0}, BLUR], "RandomCrop, GaussianBlur"),
    ([{"NAME": "OneOf", "p": 1.0, "transforms": [{"NAME": "Equalize"}, {"NAME": "HorizontalFlip"}]}], "OneOf")])
def test_test_images_that_are_changed_by_chance_are_told(tiny, nodes, drawing):
    config = load_config(tiny, {"DATA.TEST_TRANSFORMS": nodes, "DATA.TRAIN_TRANSFORMS": [CROP]})
    data = photographs()
    loaders = build_loaders(config, data, CPU)
    before = [batch.images.clone() for batch in loaders.test]
    found = checks.before_training(config, data, loaders, 23)
    assert found == ({} if drawing is None else {"drawn tests": (
        f"DATA.TEST_TRANSFORMS change test images by chance ({drawing}): the accuracy is of those, and others' is of "
        "the images as they are. Leave it to TRAIN_TRANSFORMS; TTA averages over such views")})
    assert all(torch.equal(batch.images, images) for batch, images in zip(loaders.test, before, strict=True))


# -- normalisation -------------------------------------------------------------------------

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
SCALED = {"mean": [0.0] * 3, "std": [1.0] * 3}


def normalisation(tiny, images=None, normalize=None, **overrides):
    nodes = [{"NAME": "Normalize", **normalize}] if normalize else []
    config = load_config(tiny, {"DATA.TRAIN_TRANSFORMS": nodes, **overrides})
    data = build_data(config) if images is None else images
    found = checks.odd_normalisation(config, data, build_loaders(config, data, CPU))
    return found.get("normalisation")


def photographs():
    """Pixels with about the mean and deviation of photographs."""
    return data_of(pixels(40, 0, 15, 235), pixels(8, 1), mean=(0.49,) * 3, std=(0.25,) * 3)


def dark():
    return data_of(pixels(40, 0, 0, 20), pixels(8, 1, 0, 20), mean=(0.037,) * 3, std=(0.023,) * 3)


@pytest.mark.parametrize("normalize", [None, IMAGENET, HALF, SCALED])
def test_usual_constants_are_near_enough(tiny, normalize):
    assert normalisation(tiny, photographs(), normalize) is None
    assert normalisation(tiny, None, normalize) is None  # the digits, mostly black


@pytest.mark.parametrize("normalize, received", [
    (HALF, "mean -0.925 -0.925 -0.926 and std 0.0456 0.0458 0.0449"),
    ({"mean": [0.037] * 3, "std": [5.8] * 3}, "std 0.00")])
def test_constants_far_from_the_data_are_told(tiny, normalize, received):
    text = normalisation(tiny, dark(), normalize)
    assert "theirs are 0.0374 0.0373 0.0369 and 0.0228 0.0229 0.0224:" in text and received in text
    assert "Leave mean and std out of DATA.TRAIN_TRANSFORMS.0: Normalize then takes the data's own" in text


@pytest.mark.parametrize("std", [63.0, 0.001])
def test_constants_of_another_scale_are_told(tiny, capsys, std):
    line, = trained(tiny, capsys, **{"DATA.TRAIN_TRANSFORMS": [{"NAME": "Normalize", "mean": [0.3] * 3, "std": [std] * 3}]})
    assert line.startswith(f"warning    images are normalised with mean 0.3 0.3 0.3 and std {std:.3g} ")


def test_what_a_data_set_declares_is_compared_with_its_pixels(tiny):
    pixels_of = photographs()
    wrong = data_of(pixels_of.train.images, pixels_of.test.images, mean=(0.49,) * 3, std=(64.0,) * 3)
    assert "Correct mean and std of DATA.DATASET Digits: of pixels scaled to 0–1" in normalisation(tiny, wrong)


def test_pretrained_weights_have_their_own_constants_unless_absurd(tiny):
    weights = {"MODEL": {"NAME": "mobilenet_v3_small", "weights": "DEFAULT"}}
    assert normalisation(tiny, dark(), IMAGENET) and normalisation(tiny, dark(), IMAGENET, **weights) is None
    absurd = {"mean": IMAGENET["mean"], "std": [58.0, 57.0, 57.0]}
    assert "std 58 57 57" in normalisation(tiny, photographs(), absurd, **weights)


# -- the learning rate ---------------------------------------------------------------------


def plan(tiny, scheduler, **overrides):
    config = load_config(tiny, {"TRAIN.EPOCHS": 20, "SCHEDULER": scheduler, **overrides})
    return checks.idle_plan(config, 5).get("scheduler")


def test_a_plan_that_never_moves_the_rate_is_told_before_training(tiny, capsys):
    capsys.readouterr()
    config = load_config(tiny, {"SCHEDULER": {"NAME": "StepLR", "step_size": 30}})
    check(config)
    line = ("warning    StepLR leaves the learning rate at 0.05 in all 2 epochs. Choose SCHEDULER.step_size 30 "
            "for TRAIN.EPOCHS 2, or say SCHEDULER null if a constant rate is meant")
    assert warnings_of(capsys.readouterr().out) == [line]
    run = train(config)  # and not once more at the end
    assert warnings_of((run.folder / "train.log").read_text()) == [line]


@pytest.mark.parametrize("scheduler, moves", [
    ({"NAME": "StepLR", "step_size": 20}, False),  # only after the last epoch
    ({"NAME": "StepLR", "step_size": 19}, True),
    ({"NAME": "MultiStepLR", "milestones": [30, 60]}, False),
    ({"NAME": "MultiStepLR", "milestones": [10, 60]}, True),
    ({"NAME": "CosineAnnealingLR", "T_max": 7820}, False),  # of steps, where epochs are meant
    ({"NAME": "CosineAnnealingLR"}, True),
    ({"NAME": "LinearLR", "total_iters": 3}, True),
    ({"NAME": "ReduceLROnPlateau"}, True), ({"NAME": "OneCycleLR"}, True),
    ({"NAME": "OneCycleLR", "max_lr": "find"}, True), (None, True)])
def test_whether_a_plan_moves_the_rate(tiny, scheduler, moves):
    assert (plan(tiny, scheduler) is None) == moves


def test_the_warm_up_is_not_part_of_the_plan(tiny):
    step = {"NAME": "StepLR", "step_size": 15}
    assert plan(tiny, step) is None and "StepLR leaves" in plan(tiny, step, **{"TRAIN.WARMUP_EPOCHS": 5})
    assert plan(tiny, step, **{"TRAIN.EPOCHS": 1}) is None  # nothing can be planned for one epoch


@pytest.mark.parametrize("epochs, says", [(0.09, True), (0.2, False), (0.0, False), (1.0, False)])
def test_a_warm_up_of_no_step_is_told(tiny, capsys, epochs, says):
    check(load_config(tiny, {"TRAIN.WARMUP_EPOCHS": epochs}))
    line = (f"warning    there is no warm-up: TRAIN.WARMUP_EPOCHS {epochs:g} comes to no step where "
            "an epoch has 5 steps\n")
    assert (line in capsys.readouterr().out) == says


def test_an_own_scheduler_that_did_nothing_is_told_at_the_end(tiny, capsys):
    @SCHEDULERS.register()
    class idle(torch.optim.lr_scheduler.LRScheduler):  # noqa: N801
        unit = "batch"

        def get_lr(self):
            return [group["lr"] for group in self.optimizer.param_groups]

    overrides = {"SCHEDULER": {"NAME": "idle"}, "TRAIN.EPOCHS": 2, "TRAIN.WARMUP_EPOCHS": 1}
    line, = trained(tiny, capsys, **overrides)
    assert "idle leaves the learning rate at 0.05 in all 2 epochs. Choose its arguments for TRAIN.EPOCHS 2" in line


def test_a_rate_below_zero_is_told_once(tiny, capsys):

    @SCHEDULERS.register("dips")
    class Dips:
        """Goes by the loss, which is not known before training."""

        unit = "metric"

        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self, loss):
            self.optimizer.param_groups[0]["lr"] = 1e-3 * (1.5 - loss)

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    line, = trained(tiny, capsys, **{"SCHEDULER": {"NAME": "dips"}, "TRAIN.EPOCHS": 4, "DATA.LIMIT": 60})
    assert "dips made the learning rate negative in epoch 2, down to -0.000" in line and "raise the loss" in line


@pytest.mark.parametrize("overrides", [
    {"SCHEDULER": {"NAME": "ReduceLROnPlateau", "patience": 10}}, {"SCHEDULER": {"NAME": "OneCycleLR"}},
    {"SCHEDULER": {"NAME": "CosineAnnealingLR"}}, {"TRAIN.WARMUP_EPOCHS": 1}])
def test_schedulers_that_did_their_work_are_not_told(tiny, capsys, overrides):
    assert trained(tiny, capsys, **{"TRAIN.EPOCHS": 2, "DATA.LIMIT": 40, **overrides}) == []


def test_a_training_that_was_stopped_early_may_not_have_come_to_its_scheduler(tiny):
    config = load_config(tiny, {"TRAIN.EPOCHS": 20, "SCHEDULER": {"NAME": "StepLR", "step_size": 10}})
    schedule = build_schedule(config.SCHEDULER, torch.optim.SGD([torch.zeros(1)], lr=0.05), 20, 5)
    records = [{"rates": [(5 * epoch, 0.05)]} for epoch in range(20)]
    assert checks.idle_scheduler(config, schedule, records[:8]) == {}
    assert "at 0.05 in all 20" in checks.idle_scheduler(config, schedule, records)["scheduler"]


# -- the loss ------------------------------------------------------------------------------


class OnLogits(nn.NLLLoss):
    """The classic mistake: log probabilities are expected."""


def test_a_loss_below_zero_is_told_once(tiny, capsys):
    LOSSES.register()(OnLogits)
    line, = trained(tiny, capsys, **{"LOSS": {"NAME": "OnLogits"}, "TRAIN.EPOCHS": 2, "TRAIN.CLIP_GRAD_NORM": 1.0})
    assert line.startswith("warning    the loss is below 0 after epoch 1 (train -")
    assert ("and NLLLoss cannot be. It is defined on log probabilities: make OnLogits turn the logits into "
            "them, or set LOSS.NAME NLLLoss, which is given them") in line


def test_either_split_can_give_it_away(tiny):
    record = {"epoch": 3, "train/loss": 0.2, "val/loss": -1.25}
    text = checks.negative_loss(OnLogits(), record, "val")["negative loss"]
    assert "below 0 after epoch 3 (train 0.2000, val -1.2500)" in text


def test_weights_below_zero_are_named(tiny):
    loss = build_loss({"NAME": "BCEWithLogitsLoss", "pos_weight": [-1.0, 3.0]}, 2)
    text = checks.negative_loss(loss, {"epoch": 1, "train/loss": -1.0, "test/loss": 1.0}, "test")
    assert "BCEWithLogitsLoss cannot be. The numbers of LOSS.weight and pos_weight have to be above 0" in text["negative loss"]


class Rewarded(nn.Module):
    """A loss of one's own that may be negative: it holds one of torch's, and is none."""

    criterion = nn.CrossEntropyLoss()


@pytest.mark.parametrize("loss, value", [
    (Rewarded(), -3.0), (build_loss({"NAME": "NLLLoss"}, 10), 0.0), (nn.CrossEntropyLoss(), -1e-7)])
def test_a_loss_that_may_be_negative_or_is_zero_is_not_told(loss, value):
    assert checks.negative_loss(loss, {"epoch": 1, "train/loss": value, "test/loss": value}, "test") == {}


# -- accuracy at chance --------------------------------------------------------------------


def test_guessing_while_the_loss_rises_is_told_once(tiny, capsys):
    @MODELS.register()
    class Constant(nn.Module):  # so that every processor guesses alike
        def __init__(self, num_classes):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(num_classes))

        def forward(self, images):
            return self.logits.expand(len(images), -1)

    line, = trained(tiny, capsys, MODEL={"NAME": "Constant"}, **{
        "OPTIMIZER.lr": 5.0, "OPTIMIZER.maximize": True, "DATA.BATCH_SIZE": 6, "TRAIN.EPOCHS": 2})
    assert line.startswith("warning    after epoch 1 the test accuracy of 10.00% is that of guessing "
                           "(the largest class has 10.00%), and the train loss rises, from 2.3026 to ")
    assert line.endswith("at learning rates up to 5. Lower OPTIMIZER.lr (python tools/find_lr.py suggests one), warm up "
                         "(TRAIN.WARMUP_EPOCHS 1) or clip gradients (TRAIN.CLIP_GRAD_NORM 1)")


def test_a_loss_that_falls_is_not_said_to_rise_because_its_classes_weigh_differently(
        tiny, capsys):
    """180 images of a class that weighs 10 to 1: sums over images are far from weighted means."""
    random = np.random.default_rng(0)
    split = ImageSet.of(random.integers(0, 256, (200, 8, 8, 3), dtype=np.uint8), np.array([0] * 180 + [1] * 20))
    DATASETS.register("Uneven")(lambda: ImageData(("a", "b"), split, split, 3, (8, 8), (0.5,) * 3, (0.3,) * 3))
    lines = trained(tiny, capsys, **{
        "DATA.DATASET": {"NAME": "Uneven"}, "DATA.LIMIT": 0, "DATA.TRAIN_TRANSFORMS": [], "DATA.BATCH_SIZE": 5,
        "LOSS": {"NAME": "CrossEntropyLoss", "weight": [10.0, 1.0]}, "OPTIMIZER.lr": 1e-8, "TRAIN.EPOCHS": 2})
    assert not [line for line in lines if "rises" in line]


def chance(tiny, accuracy, losses, before=None, share=0.5, **overrides):
    """Return the warning of an epoch on 100 test images, `share` of them of one class."""
    labels = (np.arange(100) >= 100 * share).astype(int)
    data = data_of(pixels(20, 0), (pixels(100, 1), labels))
    records = [] if before is None else [{"train/loss": before}]
    records.append({"epoch": 2, "lr": 0.1, "test/accuracy": accuracy, "train/loss": 9.0, "rates": [(0, 0.1), (5, 0.4)]})
    return checks.rising_at_chance(load_config(tiny, overrides), data, records, losses).get("chance")


RISING = [0.7] + [1.0] * 19 + [2.0] * 10


def test_the_figures_of_the_epoch_are_told(tiny):
    text = chance(tiny, 0.59, RISING)
    assert "accuracy of 59.00% is that of guessing (the largest class has 50.00%)" in text
    assert "rises, from 0.7000 to 2.0000, at learning rates up to 0.4. Lower OPTIMIZER.lr" in text
    assert "from 1.4900 to 2.0000" in chance(tiny, 0.5, RISING, before=1.49)
    assert "Lower SCHEDULER.max_lr" in chance(tiny, 0.5, RISING, SCHEDULER={"NAME": "OneCycleLR", "max_lr": 0.4})
    assert "the largest class has 90.00%" in chance(tiny, 0.9, RISING, share=0.9)


@pytest.mark.parametrize("accuracy, losses, before", [
    (0.61, RISING, None),  # better than two deviations of 5 %
    (0.5, [2.0, *RISING[1:]], None), (0.5, RISING, 1.6),  # no higher than before, or hardly
    (0.5, RISING[::-1], None), (0.5, [0.7] * 9 + [2.0] * 9, None)])  # falls; too few batches
def test_an_epoch_that_learns_or_tells_nothing_is_not_told(tiny, accuracy, losses, before):
    assert chance(tiny, accuracy, losses, before) is None


def test_a_class_that_is_frequent_is_guessed_more_often(tiny):
    assert chance(tiny, 0.8, RISING, share=0.8) and chance(tiny, 0.8, RISING, share=0.6) is None


# -- shipped configs -----------------------------------------------------------------------


def test_the_quick_start_is_not_warned_of_anything(capsys):
    path = ROOT / "configs" / "resnet18_digits.yaml"
    assert trained(path, capsys, **{"TRAIN.EPOCHS": 2, "DATA.LIMIT": 400, "WRITERS": []}) == []
    config = load_config(path)
    data = build_data(config)
    assert checks.before_training(config, data, build_loaders(config, data, CPU), 23) == {}


def test_no_config_of_cifar_is_warned_of_before_training(cifar_images):
    folder = {"DATA.DATASET": {"NAME": "ImageFolder", "root": str(cifar_images)}}
    paths = sorted((ROOT / "configs").glob("*cifar*.yaml"))
    data = build_data(load_config(paths[0], folder))
    assert len(paths) >= 14 and len(data.train) >= 5000
    assert checks.overlaps(load_config(paths[0], folder), data) == {}
    part = data.with_splits(test=data.test.take(np.arange(0, 1000, 10)))  # of every class
    for path in paths:
        config = load_config(path, folder)
        assert checks.before_training(config, part, build_loaders(config, part, CPU), 40) == {}, path
