"""Made-up images, and predictions of all kinds, for pictures of them."""

import cv2
import numpy as np

from cvkit.runs.predictions import Predictions

NAMES = ["猫", "犬 いぬ", "a very long name of a class that goes on and on and on, W", "new\nline", "$5",
         "Größe", "🙂", "x", "", "</script>"]


def made_up(classes=10, images=600, margin=2.0, names=None, seed=0):
    """Return predictions that are right the more often the larger the margin is."""
    random = np.random.default_rng(seed)
    true = random.integers(0, classes, images)
    logits = random.normal(size=(images, classes))
    logits[np.arange(images), true] += random.normal(margin, 1, images)
    shares = np.exp(logits)
    return said(shares / shares.sum(1, keepdims=True), true, names)


def said(probabilities, true, names=None):
    """Return predictions with these probabilities of images of these classes."""
    probabilities, true = np.asarray(probabilities, np.float32), np.asarray(true, np.int64)
    own = probabilities[np.arange(len(true)), true]
    return Predictions(np.arange(len(true)), true, probabilities.argmax(1), probabilities,
                       names or [f"class {number}" for number in range(probabilities.shape[1])],
                       3, float(-np.log(np.maximum(own, 1e-30)).mean()))


def kinds():
    """Return by name predictions whose pictures go wrong most easily."""
    everything = np.eye(10)[np.arange(60) % 10]
    rare = made_up(images=200)
    return {
        "two classes": made_up(2), "ten": made_up(), "a hundred": made_up(100, 3000),
        "odd names": made_up(names=NAMES), "all right": said(everything, np.arange(60) % 10),
        "one class for all": said(np.eye(10)[[0] * 60], np.arange(60) % 10),
        "a class without images": said(rare.probabilities, np.where(rare.true == 3, 4, rare.true)),
        "few images": made_up(images=12)}


def sharpened(factor, seed=0, images=4000):
    """Predictions of a model that is calibrated, but for its logits, which are so many times as large."""
    random = np.random.default_rng(seed)
    logits = 1.5 * random.normal(size=(images, 5))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    true = (shares.cumsum(1) > random.random((images, 1))).argmax(1)
    sharp = np.exp(factor * logits)
    return said(sharp / sharp.sum(1, keepdims=True), true)


def photo(random, side=32):
    """Return an image of coarse and fine structure, as photographs have."""
    layers = [cv2.resize(random.uniform(-120 / scale, 120 / scale, (4 * scale, 4 * scale, 3)), (side, side),
                         interpolation=cv2.INTER_CUBIC) for scale in (1, 2, 4)]
    return (128 + sum(layers)).clip(0, 255).astype(np.uint8)


def photos(count, seed, side=32):
    random = np.random.default_rng(seed)
    return np.stack([photo(random, side) for _ in range(count)])


def changed(images, seed=1):
    """Return the images brighter or darker, noisy, compressed, or shifted by a pixel, by turns."""
    random = np.random.default_rng(seed)
    found = []
    for number, image in enumerate(images):
        if number % 4 == 0:
            image = (image * random.uniform(0.8, 1.1)).clip(0, 255).astype(np.uint8)
        elif number % 4 == 1:
            image = (image + random.normal(0, 10, image.shape)).clip(0, 255).astype(np.uint8)
        elif number % 4 == 2:
            image = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1)
        else:
            image = np.roll(image, 1, axis=1)
        found.append(image)
    return np.stack(found)
