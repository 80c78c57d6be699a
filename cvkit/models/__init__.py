"""The models, one family per file; torchvision's by name. `build_model` fits one to the data."""

from cvkit.models import (  # noqa: F401  they register models and layers
    airbench,
    resnet,
    resnet9,
    sequential,
    vit,
    whitening,
)
from cvkit.models.build import build_model, count_parameters, parameters_in_words

__all__ = ["build_model", "count_parameters", "parameters_in_words"]
