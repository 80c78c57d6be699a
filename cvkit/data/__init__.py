"""Images and labels: data sets, transforms, and the loaders that make batches of them."""

from cvkit.data import datasets, image_folder, transforms  # noqa: F401  they register their entries
from cvkit.data.build import build_data, build_loaders
from cvkit.data.images import ImageData, ImageFiles, ImageSet
from cvkit.data.loaders import Loaders

__all__ = ["ImageData", "ImageFiles", "ImageSet", "Loaders", "build_data", "build_loaders"]
