import pickle
import random

import albumentations
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from cvkit.config import load_config
from cvkit.data import ImageData, ImageSet, build_data, build_loaders
from cvkit.data.pipeline import Pipeline, build_pipeline
from cvkit.data.transforms import Normalize
from cvkit.errors import ConfigError, UserError
from cvkit.registry import TRANSFORMS
from cvkit.registry.listing import describe

MEAN = (0.4914, 0.4822, 0.4465)
IMAGE = np.random.default_rng(0).integers(1, 256, (32, 32, 3), dtype=np.uint8)


def data_of(images=None, image_size=(32, 32)):
    images = np.stack([IMAGE] * 4) if images is None else images
    split = ImageSet.of(images, [0, 1] * (len(images) // 2))
    return ImageData(("a", "b"), split, split, images[0].shape[-1], image_size, MEAN, (0.25,) * 3)


def apply(node, image=IMAGE, seed=0):
    built = TRANSFORMS.build(node, data_mean=MEAN, data_std=(0.25,) * 3)
    pipeline = Pipeline(built if isinstance(built, list) else [built])
    pipeline.seed(seed)
    return pipeline(image)


def outcomes(node, image=IMAGE, count=300):
    return [apply(node, image, seed) for seed in range(count)]


def test_random_crop_gives_every_shift_of_the_padded_image_and_nothing_else():
    padded = np.pad(IMAGE, ((4, 4), (4, 4), (0, 0)))
    windows = {padded[y:y + 32, x:x + 32].tobytes(): (y, x) for y in range(9) for x in range(9)}
    found = [windows[image.tobytes()] for image in outcomes({"NAME": "RandomCrop", "size": 32,
                                                             "padding": 4}, count=1000)]
    assert len(set(found)) == 81
    assert abs(np.mean(found) - 4) < 0.2


def test_random_crop_without_padding_and_to_a_rectangle():
    for image in outcomes({"NAME": "RandomCrop", "size": [20, 24]}, count=20):
        assert image.shape == (20, 24, 3)


def test_random_crop_fills_with_the_mean_where_asked():
    image = apply({"NAME": "RandomCrop", "size": 40, "padding": 4, "fill": "mean"})
    assert image[0, 0].tolist() == [125, 123, 114]
    assert np.array_equal(image[4:36, 4:36], IMAGE)


def test_cutout_always_covers_one_window_within_the_image_with_the_mean():
    corners = set()
    for image in outcomes({"NAME": "CutOut", "size": 16}):
        changed = (image != IMAGE).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert rows[-1] - rows[0] == columns[-1] - columns[0] == 15  # never fewer: p is 1
        window = image[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        assert (window == [125, 123, 114]).all()  # the mean in 0–255, not black
        corners.add((rows[0], columns[0]))
    assert {y for y, _ in corners} == {x for _, x in corners} == set(range(17))


def test_a_cutout_may_be_centred_on_any_pixel_as_in_the_paper():
    found = set()
    for image in outcomes({"NAME": "CutOut", "size": [16, 9], "inside": False}):
        changed = (image != IMAGE).any(-1)
        for sides, lines in enumerate((changed.any(1), changed.any(0))):
            places = np.flatnonzero(lines)
            found.add((sides, places[0], places[-1] + 1))
        assert changed.sum() == changed.any(1).sum() * changed.any(0).sum()
        assert (image[changed] == [125, 123, 114]).all()
    # The published code clips centre - length // 2 and that plus the length to the image.
    assert found == {(side, max(0, centre - length // 2), min(32, centre - length // 2 + length))
                     for side, length in enumerate((16, 9)) for centre in range(32)}


def test_the_hole_is_zero_after_normalisation(tiny):
    config = load_config(tiny, ["DATA.TRAIN_TRANSFORMS", "[{NAME: CutOut, size: 31}]"])
    loader = build_loaders(config, build_data(config), torch.device("cpu")).train
    images = next(iter(loader)).images
    assert images[:, :, 8:24, 8:24].abs().max() < 0.5 / 255 / min(loader.std)


@pytest.mark.parametrize("fill", [0.4914, [0.4914, 0.4822, 0.4465], 256, -1, "black"])
def test_a_fill_that_would_be_black_by_mistake_is_refused(fill):
    with pytest.raises(ConfigError, match="fill"):
        TRANSFORMS.build({"NAME": "CutOut", "size": 16, "fill": fill}, data_mean=MEAN)


@pytest.mark.parametrize("name", ["RandomCrop", "CutOut", "Rotate", "Translate"])
def test_a_fill_has_a_number_for_each_channel_or_one_for_all(name):
    node = {"NAME": name, **({"limit": 20} if name in ("Rotate", "Translate") else {"size": 16})}
    for images, fill in ((IMAGE[..., :1], [1, 2, 3]), (IMAGE, [7, 8])):
        with pytest.raises(ConfigError, match=f"fill of {name} has {len(fill)} numbers, and images have"):
            build_pipeline([{**node, "fill": fill}], data_of(np.stack([images] * 4)))


def test_the_mean_of_grey_data_fills_all_channels_of_images_that_became_rgb():
    grey = ImageSet.of(np.full((4, 8, 8, 1), 9, np.uint8), [0, 1, 0, 1])
    data = ImageData(("a", "b"), grey, grey, 1, (8, 8), (0.31,), (0.25,))
    nodes = [{"NAME": "ToRGB"}, {"NAME": "RandomCrop", "size": 10, "padding": 1, "fill": "mean"}]
    pipeline, _ = build_pipeline(nodes, data)
    images = torch.from_numpy(pipeline.prepare(grey.image(0)))[None]
    batched = pipeline.augment_batch(images, pipeline.draw(0, 0, np.arange(1), images.shape[1:]))[0].numpy()
    assert np.array_equal(batched, pipeline(grey.image(0))) and batched[0, 0].tolist() == [79] * 3


def test_a_fill_in_pixel_values_is_used():
    image = apply({"NAME": "CutOut", "size": 32, "fill": [10, 20, 30]})
    assert (image == [10, 20, 30]).all()


def test_horizontal_flip_mirrors_half_of_the_images():
    flips = [np.array_equal(image, IMAGE[:, ::-1]) for image in outcomes({"NAME": "HorizontalFlip"})]
    assert all(np.array_equal(image, IMAGE) or flipped for image, flipped in zip(
        outcomes({"NAME": "HorizontalFlip"}), flips, strict=True))
    assert 0.4 < np.mean(flips) < 0.6


def test_rotate_turns_always_and_within_its_limit():
    line = np.zeros((101, 101, 3), np.uint8)
    line[50] = 255
    angles = []
    for image in outcomes({"NAME": "Rotate", "limit": 5}, line):
        bright = image[..., 0].astype(float)
        rows = (np.arange(101) @ bright) / np.maximum(bright.sum(0), 1)
        angles.append(np.degrees(np.arctan(np.polyfit(np.arange(20, 81), rows[20:81], 1)[0])))
    angles = np.array(angles)
    assert np.abs(angles).max() < 5.1 and np.abs(angles).max() > 4.5
    assert (np.abs(angles) > 0.01).mean() > 0.98  # p is 1, not albumentations' 0.5
    assert angles.min() < -4 and angles.max() > 4


def test_albumentations_by_class_name_with_its_own_meaning():
    assert np.array_equal(apply({"NAME": "VerticalFlip", "p": 1.0}), IMAGE[::-1])
    assert isinstance(TRANSFORMS.build("CoarseDropout"), albumentations.CoarseDropout)


def test_any_function_of_an_image_is_a_transform():

    @TRANSFORMS.register()
    class Invert:
        def __init__(self, top=255):
            self.top = top

        def __call__(self, image):
            np.subtract(self.top, image, out=image)
            return image

    TRANSFORMS.register("number")(lambda: 3)
    TRANSFORMS.register("buggy")(lambda: lambda image: image / 0 + None)
    pipeline, _ = build_pipeline([{"NAME": "Invert"}], data_of())
    before = IMAGE.copy()
    assert np.array_equal(pipeline(IMAGE), 255 - before)
    assert np.array_equal(IMAGE, before)  # the data set is not changed in place
    with pytest.raises(ConfigError, match="transform number is int, which cannot be called"):
        build_pipeline([{"NAME": "number"}], data_of())
    with pytest.raises(TypeError), np.errstate(divide="ignore"):  # with its own traceback
        build_pipeline([{"NAME": "buggy"}], data_of())


def test_two_flips_are_independent():
    nodes = [{"NAME": "HorizontalFlip"}, {"NAME": "VerticalFlip"}]
    pipeline, _ = build_pipeline(nodes, data_of())
    seen = set()
    for seed in range(60):
        pipeline.seed(seed)
        image = pipeline(IMAGE)
        seen.add((image[0, 0].tolist() in (IMAGE[0, -1].tolist(), IMAGE[-1, -1].tolist()),
                  image[0, 0].tolist() in (IMAGE[-1, 0].tolist(), IMAGE[-1, -1].tolist())))
    assert seen == {(False, False), (False, True), (True, False), (True, True)}


@pytest.mark.parametrize("image", [IMAGE, IMAGE[..., :1]], ids=["RGB", "grey"])
@pytest.mark.parametrize("name, arguments", [("RandAugment", {"num_ops": 1, "magnitude": 20}),
                                             ("TrivialAugmentWide", {})])
def test_automatic_augmentations_give_what_torchvision_s_give(name, arguments, image):
    """All that the library makes of an image is known: 14 operations of some strength and sign."""
    library = getattr(v2, name)(fill=9, **arguments)
    picture = Image.fromarray(image.squeeze())
    torch.manual_seed(0)
    draws = 10_000 if name == "TrivialAugmentWide" else 1000  # of 31 strengths, or of one
    known = {np.asarray(library(picture)).tobytes() for _ in range(draws)}
    found = [made.tobytes() for made in outcomes({"NAME": name, "fill": 9, **arguments}, image)]
    assert set(found) <= known
    assert len(set(found)) > (12 if name == "RandAugment" else 150)


def test_rand_augment_of_no_strength_leaves_what_has_a_strength_alone():
    picture = Image.fromarray(np.minimum(IMAGE, 254))  # Solarize inverts 255 even so
    known = {np.asarray(made).tobytes() for made in (
        picture, ImageOps.autocontrast(picture), ImageOps.equalize(picture))}
    found = [image.tobytes() for image in outcomes(
        {"NAME": "RandAugment", "num_ops": 1, "magnitude": 0}, np.asarray(picture))]
    assert set(found) == known
    assert 0.8 < np.mean([image == picture.tobytes() for image in found]) < 0.9  # 12 of 14


def test_rand_augment_of_no_operations_is_the_image():
    assert np.array_equal(apply({"NAME": "RandAugment", "num_ops": 0}), IMAGE)


@pytest.mark.parametrize("name", ["RandAugment", "TrivialAugmentWide"])
def test_automatic_augmentations_fill_with_the_mean_where_asked(name):
    white = np.full((32, 32, 3), 255, np.uint8)
    images = outcomes({"NAME": name, "fill": "mean"}, white, count=100)
    assert (125, 123, 114) in {tuple(image[y, x].tolist()) for image in images
                               for y in (0, -1) for x in (0, -1)}


@pytest.mark.parametrize("name", ["RandAugment", "TrivialAugmentWide"])
def test_automatic_augmentations_leave_torch_s_random_numbers_alone(name, monkeypatch):
    # torch.manual_seed goes on to the GPUs with this; a model's dropout draws from theirs
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds the GPUs"))
    before = torch.get_rng_state()
    outcomes({"NAME": name}, count=20)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("node, expected", [
    ({"NAME": "RandAugment", "magnitude": 31}, "magnitude is 0–30, not 31"),
    ({"NAME": "RandAugment", "magnitude": -1}, "magnitude is 0–30, not -1"),
    ({"NAME": "RandAugment", "num_ops": -1}, "num_ops is 0 or more, not -1"),
    ({"NAME": "RandAugment", "fill": 0.5}, "would be nearly black"),
    ({"NAME": "TrivialAugmentWide", "fill": [1, 2]},
     "fill of TrivialAugmentWide has 2 numbers, and images have 3 channels")])
def test_automatic_augmentations_that_cannot_be_are_refused_before_training(node, expected):
    with pytest.raises(ConfigError, match=expected):
        build_pipeline([node], data_of())


@pytest.mark.parametrize("name", [name for name in TRANSFORMS.own
                                  if name not in ("Normalize", "MixUp", "CutMix", "Shift", "AlternatingFlip")])
def test_a_seed_fixes_every_own_transform(name):
    node = {"NAME": name, **{"RandomCrop": {"size": 32, "padding": 4}, "CutOut": {"size": 8},
                             "Rotate": {"limit": 20}, "Translate": {"limit": 4}}.get(name, {})}
    pipeline, _ = build_pipeline([node], data_of())
    runs = []
    for key in ((0, 1, 2), (0, 1, 2), (0, 1, 3)):
        pipeline.seed(*key)
        random.random(), np.random.random(), torch.rand(1)  # global streams do not matter
        runs.append([pipeline(IMAGE).tobytes() for _ in range(20)])
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) > 1  # and it differs from image to image


def test_normalize_comes_from_the_data_or_the_config_and_is_last():
    assert build_pipeline([{"NAME": "HorizontalFlip"}], data_of())[1] is None
    pipeline, normalize = build_pipeline([{"NAME": "HorizontalFlip"}, {"NAME": "Normalize"}],
                                         data_of())
    assert normalize.constants(3) == (MEAN, (0.25,) * 3) and len(pipeline.transforms) == 1
    with pytest.raises(ConfigError, match="HorizontalFlip stands after Normalize"):
        build_pipeline([{"NAME": "Normalize"}, {"NAME": "HorizontalFlip"}], data_of())
    with pytest.raises(ConfigError, match="ToTensorV2 stands after (.|\n)*Leave it out: batches become"):
        build_pipeline([{"NAME": "Normalize"}, {"NAME": "ToTensorV2"}], data_of())


@pytest.mark.parametrize("mean, std, expected", [
    ((0.5,), (0.2,), "one number per channel, 3"), ((125, 123, 114), (63, 62, 67), "divide by 255"),
    ((0.5,) * 3, (0, 1, 1), "std must be above 0")])
def test_wrong_constants_are_refused(mean, std, expected):
    with pytest.raises(ValueError, match=expected):
        Normalize(mean, std).constants(3)


def test_a_random_crop_can_stand_in_a_one_of():
    node = {"NAME": "OneOf", "p": 1.0, "transforms": [
        {"NAME": "RandomCrop", "size": 32, "padding": 4}, {"NAME": "VerticalFlip", "p": 1.0}]}
    images = outcomes(node, count=60)
    flipped = [np.array_equal(image, IMAGE[::-1]) for image in images]
    assert 10 < sum(flipped) < 50 and all(image.shape == (32, 32, 3) for image in images)


@pytest.mark.parametrize("node, expected", [
    ({"NAME": "ISONoise", "p": 0.0}, None),
    ({"NAME": "ToFloat"}, "turns images into float32"),
    ({"NAME": "RandomCrop", "size": 64}, "RandomCrop fails on an image of 32×32×3"),
])
def test_transforms_are_tried_on_an_image_before_training(node, expected):
    if expected is None:  # for certain, even if its probability is low: here on a grey image
        with pytest.raises(ConfigError, match="ISONoise fails on an image of 32×32×1"):
            build_pipeline([node], data_of(np.stack([IMAGE[..., :1]] * 4)))
        return
    with pytest.raises(ConfigError, match=expected):
        build_pipeline([node], data_of())


def test_mixed_sizes_are_refused_unless_a_transform_makes_one():
    small, large = IMAGE[:20], IMAGE

    class Mixed(list):
        def __getitem__(self, position):
            return (small, large)[position % 2]

    images = Mixed([small, large] * 3)
    with pytest.raises(ConfigError, match="images come out in different sizes"):
        build_pipeline([], data_of(images, image_size=None))
    pipeline, _ = build_pipeline([{"NAME": "Resize", "height": 24, "width": 24}],
                                 data_of(images, image_size=None))
    assert pipeline(small).shape == pipeline(large).shape == (24, 24, 3)


def test_grey_images_keep_their_channel_axis():
    grey = np.stack([IMAGE[..., :1]] * 4)
    nodes = [{"NAME": "RandomCrop", "size": 32, "padding": 4}, {"NAME": "CutOut", "size": 4, "fill": 0},
             {"NAME": "Rotate", "limit": 5}, {"NAME": "HorizontalFlip"}, {"NAME": "RandAugment"},
             {"NAME": "TrivialAugmentWide"}]
    pipeline, _ = build_pipeline(nodes, data_of(grey))
    assert pipeline(grey[0]).shape == (32, 32, 1)


@pytest.mark.parametrize("nodes, expected", [
    # one of two that fails, one that fails for some of what it draws
    ([{"NAME": "OneOf", "transforms": [{"NAME": "HorizontalFlip"}, {"NAME": "CenterCrop", "height": 99, "width": 9}]}],
     "OneOf fails on an image of 32×32×3"),
    ([{"NAME": "GaussianBlur", "blur_limit": -1}], "GaussianBlur fails on an image of 32×32×3"),
    ([{"NAME": "RandomScale", "scale_limit": 0.5}], "images come out in different sizes"),
    ([{"NAME": "RandomCrop", "size": 8}, {"NAME": "Resize", "height": 9, "width": 9, "p": 0.5}],
     "images come out in different sizes, such as 8×8 and 9×9"),
    ([{"NAME": "ToGray", "num_output_channels": 1}],
     "some images come out with 1 and some with 3 channels; a batch needs one number\n  Set p: 1.0 of the transform"),
    ([{"NAME": "ToFloat", "p": 0.5}], "ToFloat turns images into float32")])
def test_what_only_some_images_meet_is_found_before_training(nodes, expected):
    with pytest.raises(ConfigError) as caught:
        build_pipeline(nodes, data_of())
    assert expected in str(caught.value)


def test_a_random_size_before_a_resize_is_fine():
    nodes = [{"NAME": "RandomScale"}, {"NAME": "Resize", "height": 16, "width": 16}]
    assert build_pipeline(nodes, data_of())[0](IMAGE).shape == (16, 16, 3)


@pytest.mark.parametrize("key", ["data_mean", "data_std"])
def test_the_data_s_constants_are_not_the_config_s_to_set(key):
    with pytest.raises(ConfigError, match=f"Normalize has no argument '{key}'"):
        build_pipeline([{"NAME": "Normalize", key: 255}], data_of())


# -- images that become smaller --------------------------------------------------------------------


def squares(height, width):
    """Return a chequerboard whose squares are single pixels, 0 and 255."""
    board = np.indices((height, width)).sum(0) % 2 * 255
    return np.repeat(board[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("node, shape", [
    ({"NAME": "Resize", "height": 64, "width": 64}, (64, 64)),
    ({"NAME": "Resize", "height": 85, "width": 61}, (85, 61)),
    ({"NAME": "albumentations.Resize", "height": 85, "width": 61}, (85, 61)),
    ({"NAME": "SmallestMaxSize", "max_size": 70}, (70, 70)),
    ({"NAME": "LongestMaxSize", "max_size": 90}, (90, 90)),
    ({"NAME": "RandomScale", "scale_limit": [-0.7, -0.6], "p": 1.0}, None),
    ({"NAME": "RandomResizedCrop", "size": [50, 60], "scale": [0.8, 1.0]}, (50, 60)),
    ({"NAME": "RandomSizedCrop", "min_max_height": [200, 240], "size": [50, 60]}, (50, 60)),
    ({"NAME": "OneOf", "p": 1.0, "transforms": [{"NAME": "Resize", "height": 85, "width": 61}]}, (85, 61))],
    ids=lambda value: value["NAME"] if isinstance(value, dict) else "")
def test_a_fine_chequerboard_becomes_grey_without_a_pattern_when_it_shrinks(node, shape):
    for seed in range(5):
        small = apply(node, squares(256, 256), seed).astype(int)
        assert shape in (None, small.shape[:2]) and max(small.shape[:2]) < 110
        assert abs(small.mean() - 127.5) < 1 and np.abs(small - 127.5).max() < 16


@pytest.mark.parametrize("node", [
    {"NAME": "Resize", "height": 64, "width": 100},
    {"NAME": "RandomResizedCrop", "size": [64, 100], "scale": [0.99, 1.0], "ratio": [11, 13]}],
    ids=lambda node: node["NAME"])
def test_a_side_that_shrinks_is_averaged_while_the_other_grows(node):
    stripes = np.zeros((20, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    small = apply(node, stripes).astype(int)
    assert small.shape == (64, 100, 3) and np.abs(small - 127.5).max() < 40  # was 0 to 255


@pytest.mark.parametrize("name", ["Resize", "RandomResizedCrop"])
def test_an_interpolation_that_is_given_is_taken_and_growing_is_as_albumentations_does_it(name):
    size = {"height": 24, "width": 40} if name == "Resize" else {"size": [24, 40], "ratio": [1, 1.0001]}
    for image, more in ((squares(60, 60), {"interpolation": 1}), (squares(60, 60), {"interpolation": 0}),
                        (squares(60, 60), {"area_for_downscale": None}), (IMAGE[:9, :9], {})):
        library = getattr(albumentations, name)(**size, **more, p=1.0)
        pipeline = Pipeline([library])
        pipeline.seed(3)
        assert np.array_equal(apply({"NAME": name, **size, **more}, image, seed=3), pipeline(image))


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_other_channels_shrink_as_well(channels):
    image = np.repeat(squares(64, 64)[..., :1], channels, axis=2)
    small = apply({"NAME": "Resize", "height": 16, "width": 16}, image)
    assert small.shape == (16, 16, channels) and np.abs(small.astype(int) - 127.5).max() < 1


@pytest.mark.parametrize("backend", ["batched", "albumentations"])
def test_training_and_test_images_shrink_alike_however_batches_are_made(tiny, tmp_path, backend):
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / "x" / split / name).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(squares(64, 48 + 16 * number)).save(tmp_path / "x" / split / name / f"{number}.png")
    resize = "[{NAME: Resize, height: 20, width: 12}]"
    config = load_config(tiny, ["DATA.DATASET", "{NAME: ImageFolder, root: x}", "DATA.LIMIT", "0", "DATA.PIPELINE", backend,
                                "DATA.TRAIN_TRANSFORMS", resize, "DATA.TEST_TRANSFORMS", resize])
    loaders = build_loaders(config, build_data(config), torch.device("cpu"))
    train, test = (loader.denormalise(next(iter(loader)).images).astype(int) for loader in (loaders.train, loaders.test))
    assert np.array_equal(np.sort(train, 0), np.sort(test, 0)) and np.abs(train - 127.5).max() < 12


def test_transforms_that_shrink_say_so_and_can_be_sent_to_worker_processes():
    assert "averaged over areas, unless an interpolation is given" in describe(TRANSFORMS, "Resize")
    for node in ({"NAME": "Resize", "height": 8, "width": 8}, {"NAME": "RandomResizedCrop", "size": [8, 8]}):
        pipeline, _ = build_pipeline([node], data_of())
        again = pickle.loads(pickle.dumps(pipeline))
        for each in (pipeline, again):
            each.seed(1)
        assert np.array_equal(pipeline(IMAGE), again(IMAGE))
        assert pipeline.unbatched in ([], ["RandomResizedCrop"])


@pytest.mark.parametrize("returned, what", [
    (None, "NoneType"), (7, "int"), (np.zeros(3, np.uint8), "an array of 1 dimension")])
def test_an_own_transform_that_returns_no_image_is_named(returned, what):
    TRANSFORMS.register("Forgetful")(lambda: lambda image: returned)
    with pytest.raises(UserError, match=f"transform .*returned {what}, not an image (.|\n)*Is a return missing"):
        build_pipeline([{"NAME": "Forgetful"}], data_of())


@pytest.mark.parametrize("node", [
    {"NAME": "AlternatingFlip"}, {"NAME": "OneOf", "transforms": [{"NAME": "HorizontalFlip"}, {"NAME": "AlternatingFlip"}]}])
def test_what_goes_by_the_epoch_is_refused_in_a_test(node):
    build_pipeline([node], data_of(), is_training=True)
    with pytest.raises(ConfigError, match="AlternatingFlip goes by the epoch: a test has none"):
        build_pipeline([node], data_of())
