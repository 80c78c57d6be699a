import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import paint
from PIL import Image
from torch import nn

import cvkit
from cvkit.config import load_config
from cvkit.errors import CheckpointError, ConfigError, DataError, RunError
from cvkit.evaluation.predictor import Predictor
from cvkit.evaluation.run_evaluation import evaluate
from cvkit.registry import MODELS
from cvkit.runs.checkpoint import Checkpoint
from cvkit.runs.trained import open_trained
from cvkit.session import train

FLIP = {"TTA": [{"NAME": "HorizontalFlip"}]}


@pytest.fixture
def pictures(painted):
    """The test images of the painted run, a folder with a folder for each class."""
    return Path(painted.config.DATA.DATASET.root) / "test"


def lonely(run, tmp_path, name="last"):
    """Return the path of a checkpoint alone, in an empty folder."""
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    return shutil.copy(run.checkpoints / f"{name}.pt", tmp_path / "elsewhere")


def stacked(predictions):
    return np.stack([prediction.probabilities for prediction in predictions])


def test_a_checkpoint_alone_says_what_the_run_says_to_the_bit(painted, pictures, tmp_path):
    expected = painted.predictions
    files = shutil.copytree(pictures, tmp_path / "copies")
    alone = lonely(painted, tmp_path)
    shutil.rmtree(painted.folder)
    found = Predictor(alone)(str(files))
    assert np.array_equal(stacked(found), expected.probabilities)
    assert [item.label for item in found] == [expected.classes[n] for n in expected.predicted]
    assert [Path(item.file).parent.name for item in found] == [expected.classes[n] for n in expected.true]


def test_it_needs_no_data(run, tmp_path):
    """Digits come from scikit-learn; their pixels are given, and nothing of the data set is asked."""
    test, expected = run.data.test, run.predictions
    alone, images = lonely(run, tmp_path), np.stack([test.image(place) for place in range(len(test))])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cvkit.runs.experiment.build_data", None)
        found = Predictor(alone)(images)
    assert np.array_equal(stacked(found), expected.probabilities)


def test_a_run_is_asked_as_its_checkpoint_whose_results_count(painted, pictures):
    expected = painted.predictions.probabilities
    for source in (painted, painted.folder, str(painted.folder), None):
        assert np.array_equal(stacked(Predictor(source)(str(pictures))), expected)


@pytest.mark.parametrize("form", ["path", "name", "image", "pixels", "folder", "list", "batch"])
def test_pictures_come_in_many_forms(painted, pictures, form):
    folder = pictures / "green"
    files = sorted(folder.iterdir())
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    ask = {"path": files[0], "name": str(files[0]), "image": Image.fromarray(pixels[0]),
           "pixels": pixels[0], "folder": folder, "batch": pixels,
           "list": [files[0], pixels[1], Image.fromarray(pixels[2])]}[form]
    predictor = cvkit.Predictor(painted)
    found = predictor(ask)
    one_by_one = [predictor(file) for file in files]
    if form in ("path", "name", "image", "pixels"):
        assert np.array_equal(found.probabilities, one_by_one[0].probabilities)
        assert found.file == (str(files[0]) if form in ("path", "name") else "")
        assert found.label == predictor.classes[found.probabilities.argmax()]
        assert found.probability == found.probabilities.max() == found.top(1)[0][1]
    else:
        assert np.allclose(stacked(found), stacked(one_by_one[:len(found)]), atol=1e-6)
        assert len(found) == (3 if form == "list" else 12)


def test_top_is_ordered(painted, pictures):
    found = Predictor(painted)(next((pictures / "red").iterdir()))
    names, values = zip(*found.top())
    assert sorted(names) == ["blue", "green", "red"] and list(values) == sorted(values)[::-1]
    assert sum(values) == pytest.approx(1) and found.top(2) == found.top()[:2]


def test_a_picture_is_read_as_training_reads_it(painted, pictures, tmp_path):
    """Turned by its EXIF orientation, transparent ones on white, grey and RGBA made RGB."""
    pixels = np.asarray(Image.open(sorted((pictures / "red").iterdir())[0]))
    predictor = Predictor(painted)
    expected = predictor(pixels).probabilities
    turned, exif = Image.fromarray(np.rot90(pixels)), Image.Exif()
    exif[0x0112] = 6
    turned.save("turned.png", exif=exif)
    assert np.array_equal(predictor("turned.png").probabilities, expected)
    with Image.open("turned.png") as image:
        assert np.array_equal(predictor(image).probabilities, expected)
    for channels, on_ground in ((pixels[:, :, :1], pixels[:, :, :1].repeat(3, 2)),
                                (pixels[:, :, 0], pixels[:, :, :1].repeat(3, 2)),
                                (np.dstack([pixels, np.zeros((32, 32), np.uint8)]),
                                 np.full((32, 32, 3), 255, np.uint8))):
        assert np.array_equal(predictor(channels).probabilities, predictor(on_ground).probabilities)


def test_pictures_of_other_sizes_are_resized_to_the_training_s_and_that_is_said(painted, pictures, capsys):
    pixels = np.asarray(Image.open(sorted((pictures / "red").iterdir())[0]))
    predictor = Predictor(painted)
    expected = predictor(pixels).probabilities
    assert "resized" not in capsys.readouterr().out
    large = pixels.repeat(3, 0).repeat(2, 1)
    assert np.array_equal(predictor([large, large])[1].probabilities, expected)
    assert capsys.readouterr().out.count("note       pictures are resized to 32×32 pixels") == 1


def test_a_list_that_resizes_takes_pictures_as_they_are(tmp_path, quick):
    paint(tmp_path / "data", "train", 16, np.random.default_rng(0))
    paint(tmp_path / "data", "test", 4, np.random.default_rng(1))
    resize = [{"NAME": "Resize", "height": 24, "width": 24}]
    run = train(load_config(quick, {
        "DATA.DATASET": {"NAME": "ImageFolder", "root": str(tmp_path / "data")},
        "DATA.TRAIN_TRANSFORMS": resize, "DATA.TEST_TRANSFORMS": resize, "TRAIN.EPOCHS": 1}))
    predictor = Predictor(lonely(run, tmp_path))
    assert np.array_equal(stacked(predictor(tmp_path / "data" / "test")), run.predictions.probabilities)
    large = np.zeros((100, 50, 3), np.uint8)
    assert predictor.received([large]).shape == (1, 3, 24, 24)
    other = Predictor(run, {"DATA.TEST_TRANSFORMS": []})
    with pytest.raises(DataError, match=r"the model takes images of 3×24×24, and TEST_TRANSFORMS make "
                                        r"some of 3×32×32"):
        other(large)


def test_a_crop_of_what_a_resize_leaves_takes_pictures_that_are_as_long(tmp_path, quick):
    """A square one would be too small for it; nothing square is tried."""
    random = np.random.default_rng(0)
    for number in range(12):
        for name in "ab":
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (40, 50 + number, 3), dtype=np.uint8)).save(
                tmp_path / "data" / name / f"{number:02}.png")
    crops = [{"NAME": "SmallestMaxSize", "max_size": 36}, {"NAME": "CenterCrop", "height": 32, "width": 40}]
    run = train(load_config(quick, {
        "DATA.DATASET": {"NAME": "ImageFolder", "root": "data"}, "TRAIN.EPOCHS": 1,
        "DATA.TRAIN_TRANSFORMS": crops, "DATA.TEST_TRANSFORMS": crops}))
    files = [run.data.test.name(place) for place in range(len(run.data.test))]
    predictor = Predictor(lonely(run, tmp_path))
    assert np.array_equal(stacked(predictor(files)), run.predictions.probabilities)
    with pytest.raises(DataError, match="TEST_TRANSFORMS fail on an image of 40×40×3"):
        predictor(np.zeros((40, 40, 3), np.uint8))


def test_transforms_that_leave_no_pixels_are_refused(painted, pictures):
    with pytest.raises(DataError, match="TEST_TRANSFORMS turn images into float32"):
        Predictor(painted, {"DATA.TEST_TRANSFORMS": [{"NAME": "ToFloat"}]})(pictures)


def test_views_are_averaged_as_probabilities(painted, pictures):
    files = sorted(pictures.rglob("*.png"))
    mirrored = [np.asarray(Image.open(file))[:, ::-1] for file in files]
    plain = Predictor(painted)
    by_hand = (stacked(plain(files)) + stacked(plain(mirrored))) / 2
    found = Predictor(painted, FLIP)(files)
    assert np.allclose(stacked(found), by_hand, atol=1e-6)
    assert np.abs(by_hand - stacked(plain(files))).max() > 1e-4  # the mirrored ones differ
    assert np.array_equal(evaluate(painted.folder, FLIP).probabilities, stacked(found))


@pytest.fixture
def other_order(painted, pictures, tmp_path):
    """A second model whose classes are the same in another order."""
    checkpoint = Checkpoint.load(painted.checkpoints / "last.pt")
    checkpoint.classes = ["red", "blue", "green"]
    random = torch.Generator().manual_seed(1)
    checkpoint.model = {name: value + 0.05 * torch.randn(value.shape, generator=random)
                        if "conv" in name else value for name, value in checkpoint.model.items()}
    checkpoint.save(tmp_path / "other.pt")
    return tmp_path / "other.pt"


def test_models_are_averaged_by_the_names_of_their_classes(painted, pictures, other_order):
    one, other = Predictor(painted), Predictor(str(other_order))
    assert one.classes == ["blue", "green", "red"] and other.classes == ["red", "blue", "green"]
    by_hand = (stacked(one(pictures)) + stacked(other(pictures))[:, [1, 2, 0]]) / 2
    both = Predictor([painted, other_order])
    assert both.classes == one.classes
    assert np.allclose(stacked(both(pictures)), by_hand, atol=1e-6)
    turned = Predictor([str(other_order), painted.folder])
    assert np.allclose(stacked(turned(pictures))[:, [1, 2, 0]], by_hand, atol=1e-6)


def test_models_of_other_classes_are_not_averaged(painted, run):
    with pytest.raises(CheckpointError, match=r"have different classes: 0, 1, .* and 5 more"):
        Predictor([painted, run.folder])
    with pytest.raises(RunError, match="no run or checkpoint is named"):
        Predictor([])


def test_several_runs_are_evaluated_together(painted, quick):
    settings = {"DATA.DATASET": painted.config.DATA.DATASET, "DATA.LIMIT": 0, "TRAIN.EPOCHS": 1}
    other = train(load_config(quick, settings))
    both = evaluate([painted.folder, other.folder])
    by_hand = (painted.predictions.probabilities + other.predictions.probabilities) / 2
    assert np.allclose(both.probabilities, by_hand, atol=1e-7)
    assert both.accuracy == (by_hand.argmax(1) == painted.predictions.true).mean()
    assert both.metrics["accuracy"] == both.accuracy
    picked = by_hand[range(len(by_hand)), painted.predictions.true]
    assert both.loss == pytest.approx(-np.log(picked).mean(), rel=1e-5)
    assert both.table().endswith("of 2 models together")


def test_runs_on_other_images_are_not_evaluated_together(painted, run, tmp_path, quick):
    with pytest.raises(CheckpointError, match="have different classes"):
        evaluate([painted.folder, run.folder])
    paint(tmp_path / "data", "train", 16, np.random.default_rng(0))
    paint(tmp_path / "data", "test", 4, np.random.default_rng(1))
    other = train(load_config(quick, {"DATA.DATASET": {"NAME": "ImageFolder", "root": "data"},
                                      "DATA.LIMIT": 0, "TRAIN.EPOCHS": 1}))
    with pytest.raises(DataError, match="are tested on different images"):
        evaluate([painted.folder, other.folder])


def test_features_are_what_the_last_layer_is_given(painted, pictures):
    predictor = Predictor(painted, {"TRAIN.PRECISION": "fp32"})
    features = predictor.features(pictures)
    layer = [module for module in predictor.members[0].model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        probabilities = layer(torch.from_numpy(features)).softmax(1).numpy()
    assert features.shape == (36, layer.in_features) and features.dtype == np.float32
    assert np.allclose(probabilities, stacked(predictor(pictures)), atol=1e-5)
    one = predictor.features(sorted(pictures.rglob("*.png"))[0])
    assert one.shape == (layer.in_features,) and np.allclose(one, features[0], atol=1e-5)


def test_features_are_of_one_model(painted, pictures):
    with pytest.raises(RunError, match="one model, and the predictor has 2"):
        Predictor([painted, painted]).features(pictures)


def test_what_cannot_be_read_is_raised_or_collected(painted, pictures, tmp_path):
    good = sorted((pictures / "red").iterdir())[:2]
    (tmp_path / "broken.png").write_bytes(good[0].read_bytes()[:100])
    (tmp_path / "empty.jpg").touch()
    Image.fromarray(np.zeros((8, 8), np.int32)).save(tmp_path / "deep.png")
    files = [good[0], Path("broken.png"), Path("empty.jpg"), Path("deep.png"), Path("gone.png"), good[1]]
    predictor = Predictor(painted)
    with pytest.raises(DataError, match="broken.png cannot be read as an image") as caught:
        predictor(files)
    assert "skip_unreadable" not in str(caught.value)
    left_out = []
    found = list(predictor.stream(files, left_out))
    assert [item.file for item in found] == [str(good[0]), str(good[1])]
    assert [error.problem.split()[0] for error in left_out] == ["broken.png", "empty.jpg", "deep.png", "gone.png"]


def test_an_image_of_pillow_s_that_is_cut_off_or_too_deep_is_refused(painted, pictures):
    whole = sorted((pictures / "red").iterdir())[0].read_bytes()
    Path("cut.png").write_bytes(whole[:len(whole) // 2])
    predictor = Predictor(painted)
    with Image.open("cut.png") as image, pytest.raises(DataError, match="the image cannot be read: "):
        predictor(image)
    with pytest.raises(DataError, match=r"(?s)more than 8 bits a channel.*Convert such images to 8 bits"):
        predictor(Image.new("I;16", (32, 32)))


def test_no_pictures_and_no_runs_are_told(painted):
    predictor = Predictor(painted)
    assert predictor([]) == []
    with pytest.raises(DataError, match="there are no pictures"):
        predictor.features([])
    with pytest.raises(RunError, match="no run is named"):
        evaluate([])


def test_a_picture_that_a_random_transform_cannot_take_is_refused(painted):
    crop = [{"NAME": "LongestMaxSize", "max_size": 32}, {"NAME": "RandomCrop", "size": 32}]
    with pytest.raises(DataError, match="TEST_TRANSFORMS fail on an image of 8×32×3: "):
        Predictor(painted, {"DATA.TEST_TRANSFORMS": crop})(np.zeros((16, 64, 3), np.uint8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_models_whose_configs_name_different_devices_are_averaged(painted, pictures):
    by_device = [open_trained(painted.folder, {"DEVICE": name}) for name in ("cpu", "cuda")]
    both = Predictor([painted, painted])
    both.members = by_device
    alone = Predictor(painted, {"DEVICE": "cpu"})
    assert np.allclose(stacked(both(pictures)), stacked(alone(pictures)), atol=0.02)


@pytest.mark.parametrize("pixels, message", [
    (np.zeros((8, 8, 3), np.float32), "images are float32, not uint8"),
    (np.zeros((3, 8, 8), np.uint8), "channels first"),
    (np.zeros((8, 8, 5), np.uint8), "with 5 channels"),
    (np.zeros(8, np.uint8), r"each image is \(8,\)")])
def test_pixels_of_another_form_are_refused(painted, pixels, message):
    with pytest.raises(DataError, match=message):
        Predictor(painted)(pixels)


def test_memory_does_not_grow_with_the_number_of_pictures(painted, pictures, monkeypatch):
    """While a batch is asked for, no more than what is read ahead lies in memory."""
    alive, most = set(), []
    predictor = Predictor(painted, {"DATA.EVAL_BATCH_SIZE": 8})
    real = predictor.members[0].prepared

    class Noted(np.ndarray):
        def __array_finalize__(self, parent):
            pass

    def prepared(image):
        made = real(image).copy().view(Noted)
        alive.add(id(made))
        most.append(len(alive))
        weakref.finalize(made, alive.discard, id(made))
        return made

    monkeypatch.setattr(predictor.members[0], "prepared", prepared)
    files = sorted(pictures.rglob("*.png")) * 20
    assert sum(1 for _ in predictor.stream(files)) == 720
    assert max(most) < 120


def test_a_folder_can_be_streamed(painted, pictures):
    predictor = Predictor(painted)
    assert [item.file for item in predictor.stream(str(pictures))] == [item.file for item in predictor(pictures)]


def test_what_may_not_be_changed_is_refused(painted):
    for key, value in (("MODEL.width", 8), ("TRAIN.EPOCHS", 3), ("DATA.DATASET.root", "x")):
        with pytest.raises(ConfigError, match=f"{key} cannot be changed in a model that was trained"):
            Predictor(painted, {key: value})


@pytest.fixture
def own_model(tmp_path, tiny):
    """A run of a model that a file of the user's registers."""
    code = """
from torch import nn
from cvkit import MODELS

@MODELS.register()
def mine(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))
"""
    (tmp_path / "mine.py").write_text(code)
    return train(load_config(tiny, {"IMPORTS": ["mine.py"], "MODEL": {"NAME": "mine"}, "TRAIN.EPOCHS": 1}))


def test_code_that_a_lone_checkpoint_names_is_not_run(own_model, tmp_path):
    alone = lonely(own_model, tmp_path)
    expected = own_model.predictions.probabilities
    images = np.stack([own_model.data.test.image(place) for place in range(150)])
    with MODELS.temporarily():
        del MODELS._entries["mine"]
        (tmp_path / "mine.py").write_text("raise SystemExit('was run')")
        with pytest.raises(ConfigError, match=r"no model named 'mine'") as caught:
            Predictor(alone)(images)
        assert 'was trained with code of its author\'s: IMPORTS "[' in str(caught.value)
        assert "Allowed: " in str(caught.value)
    assert np.array_equal(stacked(Predictor(alone)(images)), expected)


@pytest.mark.parametrize("wrong, message", [
    (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is damaged or no checkpoint"),
    (lambda path: path.write_bytes(b""), "is damaged or no checkpoint"),
    (lambda path: torch.save({"format": 2, "model": {}}, path), "not written by this version"),
    (lambda path: torch.save(print, path), "is damaged or no checkpoint")])
def test_a_file_that_is_no_checkpoint_is_refused(painted, tmp_path, wrong, message):
    path = Path(lonely(painted, tmp_path))
    wrong(path)
    with pytest.raises(CheckpointError, match=message):
        Predictor(path)


@pytest.mark.parametrize("facts", [
    {"channels": 0}, {"channels": "3"}, {"channels": 3.0}, {"image_size": [32]}, {"image_size": [0, 32]},
    {"mean": []}, {"background": []}, {"background": [1, 2]},
    {"std": [float("nan")] * 3}, {"image_size": [10**6, 10**6]}, {"background": 300},
    {"background": [1, "2", 3]}, {"background": None}])
def test_facts_about_images_that_cannot_be_are_refused(painted, tmp_path, facts):
    checkpoint = Checkpoint.load(painted.checkpoints / "last.pt")
    assert checkpoint.images["channels"] == 3 and checkpoint.images["image_size"] == [32, 32]
    checkpoint.images = {**checkpoint.images, **facts}
    checkpoint.save(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="images is not what a data set's images are"):
        Predictor(tmp_path / "x.pt")


@pytest.mark.parametrize("channels, count", [(5, 5), (3, 1)])
def test_own_data_of_many_channels_is_trained_on_and_predicted(channels, count, tiny, tmp_path):
    """Five channels, or one mean for three, which a Normalize takes the place of."""
    (tmp_path / "mine.py").write_text(f"""
import numpy as np
from cvkit import DATASETS, ImageData, ImageSet

@DATASETS.register()
def Mine():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, {channels}), np.uint8)
    split = ImageSet.of(pixels, np.arange(20) % 2)
    return ImageData(("a", "b"), split, split, {channels}, (16, 16), (0.5,) * {count}, (0.2,) * {count})
""")
    normalize = [{"NAME": "Normalize", "mean": [0.5] * channels, "std": [0.2] * channels}]
    run = train(load_config(tiny, {
        "IMPORTS": ["mine.py"], "DATA.DATASET": {"NAME": "Mine"}, "DATA.LIMIT": 0, "TRAIN.EPOCHS": 1,
        "DATA.TRAIN_TRANSFORMS": normalize, "DATA.TEST_TRANSFORMS": normalize}))
    predictor = Predictor(lonely(run, tmp_path))
    pixels = np.stack([run.data.test.image(place) for place in range(20)])
    assert np.array_equal(stacked(predictor(pixels)), run.predictions.probabilities)
    if channels == 5:
        with pytest.raises(DataError, match="the model takes images of 5 channels, which no file has"):
            predictor(Image.new("RGB", (16, 16)))


def test_a_checkpoint_without_facts_about_images_is_asked_by_what_its_config_says(painted, pictures, tmp_path):
    checkpoint = Checkpoint.load(painted.checkpoints / "last.pt")
    checkpoint.images = None
    checkpoint.save(tmp_path / "x.pt")
    assert np.array_equal(stacked(Predictor(tmp_path / "x.pt")(pictures)), painted.predictions.probabilities)


def test_a_checkpoint_without_facts_about_images_is_asked_by_the_crop_of_its_training(painted, pictures, tmp_path, quick):
    crop = [{"NAME": "CenterCrop", "height": 24, "width": 24}]
    run = train(load_config(quick, {
        "DATA.DATASET": painted.config.DATA.DATASET, "DATA.TRAIN_TRANSFORMS": crop,
        "DATA.TEST_TRANSFORMS": crop, "DATA.LIMIT": 0, "TRAIN.EPOCHS": 1}))
    checkpoint = Checkpoint.load(run.checkpoints / "last.pt")
    checkpoint.images = None
    checkpoint.save(tmp_path / "x.pt")
    assert np.array_equal(stacked(Predictor(tmp_path / "x.pt")(pictures)), run.predictions.probabilities)


def test_a_crop_of_images_of_mixed_sizes_may_be_larger_than_what_the_model_takes(tmp_path, quick):
    for split, count in (("train", 16), ("test", 4)):
        paint(tmp_path / "data", split, count, np.random.default_rng(0))
        for place, file in enumerate(sorted((tmp_path / "data" / split).rglob("*.png"))):
            Image.open(file).resize((48 + place, 48)).save(file)
    crop = [{"NAME": "CenterCrop", "height": 48, "width": 48}, {"NAME": "Resize", "height": 24, "width": 24}]
    run = train(load_config(quick, {
        "DATA.DATASET": {"NAME": "ImageFolder", "root": str(tmp_path / "data")},
        "DATA.TRAIN_TRANSFORMS": crop, "DATA.TEST_TRANSFORMS": crop, "TRAIN.EPOCHS": 1}))
    found = Predictor(lonely(run, tmp_path))(tmp_path / "data" / "test")
    assert np.array_equal(stacked(found), run.predictions.probabilities)


def test_a_model_is_left_as_it_was(painted, pictures):
    predictor = Predictor(painted)
    before = {name: value.clone() for name, value in predictor.members[0].model.state_dict().items()}
    state = torch.random.get_rng_state()
    predictor(pictures)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in predictor.members[0].model.state_dict().items():
        assert torch.equal(value, before[name])
