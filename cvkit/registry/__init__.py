"""The registries: what a config can name, and which module registers cvkit's own entries."""

from cvkit.registry.registry import REGISTRIES, Registry
from cvkit.registry.signatures import NAME

DATASETS = Registry("dataset", "cvkit.data", offers=("seed",))
TRANSFORMS = Registry("transform", "cvkit.data",
                      offers=("data_mean", "data_std", "num_classes"),
                      reserved=("data_mean", "data_std", "num_classes"))
_OF_SPLIT = ("labels", "classes", "num_classes")
SAMPLERS = Registry("sampler", "cvkit.data.samplers", offers=_OF_SPLIT, reserved=_OF_SPLIT)
MODELS = Registry("model", "cvkit.models", offers=(
    "num_classes", "in_channels", "image_size", "training_images"), reserved=("training_images",),
                  beside={
    "INIT_FROM": (str | None, "weights to begin with: a run, its config, or a file"),
    "INIT_NEW": (list[str] | None, "parts, besides the head, that may begin anew")})
LAYERS = Registry("layer", "cvkit.models", offers=(
    "in_channels", "in_features", "num_features", "num_channels", "normalized_shape",
    "out_channels", "out_features", "example", "num_classes", "training_images"),
                  reserved=("example", "num_classes", "training_images"))
LOSSES = Registry("loss", "cvkit.training.losses",
                  offers=("num_classes", "classes", "class_counts"),
                  reserved=("classes", "class_counts"))
OPTIMIZERS = Registry("optimizer", "cvkit.training.optimizers", offers=("params", "fused"),
                      reserved=("params",), required=("lr",), beside={
    "groups": (list[dict] | None,
               "parameters with their own lr_mult and other arguments, see docs/fine_tune.md"),
    "layer_decay": (float | None,
                    "what the rate of each stage is multiplied by, from the last one down")})
SCHEDULERS = Registry("scheduler", "cvkit.training.schedulers", offers=(
    "optimizer", "epochs", "steps_per_epoch", "total_steps", "T_max", "max_lr"),
                      reserved=("optimizer",))
METRICS = Registry("metric", "cvkit.evaluation.metrics", offers=("classes", "num_classes"),
                   reserved=("classes", "num_classes"))
WRITERS = Registry("writer", "cvkit.reporting", offers=("folder", "config"),
                   reserved=("folder", "config"))
_SHOWN = ("compared", "range_test", "run", "runs", "predictions", "model", "loaders", "data",
          "config")
VISUALIZERS = Registry("visualizer", "cvkit.visualizers", offers=_SHOWN, reserved=_SHOWN)

SEARCHERS = Registry("searcher", "cvkit.sweep.engine", offers=("space", "seed"),
                     reserved=("space",))
PRUNERS = Registry("pruner", "cvkit.sweep.engine")

__all__ = ["DATASETS", "LAYERS", "LOSSES", "METRICS", "MODELS", "NAME", "OPTIMIZERS", "PRUNERS",
           "REGISTRIES", "SAMPLERS", "SCHEDULERS", "SEARCHERS", "TRANSFORMS", "VISUALIZERS",
           "WRITERS", "Registry"]
