"""Images and labels: data sets, transforms, and the loaders that make batches of them."""

from cvkit.data import (  # noqa: F401  they register their entries
    csv_dataset,
    datasets,
    image_folder,
    transforms,
)
from cvkit.data.build import build_data, build_loaders
from cvkit.data.images import ImageData, ImageFiles, ImageSet
from cvkit.data.loaders import Loaders

__all__ = ["ImageData", "ImageFiles", "ImageSet", "Loaders", "build_data", "build_loaders"]
