import albumentations as A
import cv2
import numpy as np
import pytest

from cvkit.evaluation.corruptions import _VALUES, STRENGTHS, corrupt

RANDOM = np.random.default_rng(0)
PHOTOS = [cv2.resize(RANDOM.integers(0, 256, (6, 6, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
          for size in ((32, 32), (30, 20), (200, 300))]
GREY = [photo[..., :1] for photo in PHOTOS]
BANDS = [np.concatenate([photo, photo[::-1, ::-1]], 2)[..., :5] for photo in PHOTOS]


@pytest.mark.parametrize("kind", _VALUES)
@pytest.mark.parametrize("images", [PHOTOS, GREY, BANDS], ids=["colour", "grey", "five bands"])
def test_each_is_worse_the_stronger_it_is_and_the_same_for_the_same_seed(kind, images):
    before = [image.copy() for image in images]
    found = [corrupt(images, kind, strength) for strength in range(1, STRENGTHS + 1)]
    for number, image in enumerate(images):
        assert (image == before[number]).all()
        versions = [made[number] for made in found]
        assert all(made.dtype == np.uint8 and made.shape == image.shape for made in versions)
        distances = [np.abs(made.astype(float) - image).mean() for made in versions]
        assert distances[0] > 0
        assert sorted(distances) == distances or kind == "jpeg"
        assert distances[-1] > distances[0]
    again = corrupt(images, kind, 3)
    assert all((one == other).all() for one, other in zip(again, found[2], strict=True))
    if kind in ("noise", "occlusion"):
        assert (corrupt(images, kind, 3, seed=1)[2] != again[2]).any()
        assert (again[0] != corrupt([images[0]] * 2, kind, 3)[1]).any()  # and no two images alike


def test_strengths_are_what_they_are_said_to_be():
    grey = np.full((100, 100, 3), 128, np.uint8)
    for strength in range(1, 6):
        noisy, = corrupt([grey], "noise", strength)
        assert (noisy.astype(float) - 128).std() == pytest.approx(255 * _VALUES["noise"][strength - 1], rel=0.12)
        covered, = corrupt([np.zeros_like(grey)], "occlusion", strength)
        assert (covered == 127).mean() == pytest.approx(_VALUES["occlusion"][strength - 1]**2, rel=0.05)
        darker, = corrupt([grey], "darker", strength)
        assert 128 - darker.mean() == pytest.approx(255 * _VALUES["darker"][strength - 1], abs=2) or darker.max() == 0
        ends = np.concatenate([np.full_like(grey, 60), np.full_like(grey, 200)])
        flat, = corrupt([ends], "contrast", strength)
        assert np.ptp(flat.astype(int)) == pytest.approx(140 * (1 - _VALUES["contrast"][strength - 1]), abs=2)
        assert flat.mean() == pytest.approx(130, abs=2)
        blurred, = corrupt([PHOTOS[2]], "blur", strength)
        sigma = 200 * _VALUES["blur"][strength - 1]
        expected = cv2.GaussianBlur(PHOTOS[2], (0, 0), sigma)
        assert np.abs(blurred.astype(float) - expected).mean() < 1.5
        packed, = corrupt([PHOTOS[2]], "jpeg", strength)
        quality = int(_VALUES["jpeg"][strength - 1])
        assert (packed == A.ImageCompression("jpeg", (quality, quality), p=1)(image=PHOTOS[2])["image"]).all()


@pytest.mark.parametrize("images", [PHOTOS, GREY], ids=["colour", "grey"])
def test_contrast_is_lost_as_albumentations_takes_it(images):
    for strength, part in enumerate(_VALUES["contrast"], 1):
        theirs = A.ColorJitter((1, 1), (1 - part, 1 - part), (1, 1), (0, 0), p=1)
        for image, ours in zip(images, corrupt(images, "contrast", strength), strict=True):
            expected = theirs(image=image)["image"].reshape(image.shape)
            assert np.abs(ours.astype(int) - expected).max() <= 1
