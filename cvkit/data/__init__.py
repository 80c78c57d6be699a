"""Images and labels: data sets, transforms, and the loaders that make batches of them."""

from cvkit.data.images import ImageData, ImageFiles, ImageSet
from cvkit.data.loaders import Loaders, build_data, build_loaders

__all__ = ["ImageData", "ImageFiles", "ImageSet", "Loaders", "build_data", "build_loaders"]
