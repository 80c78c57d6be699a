"""cvkit: image classification composed from registries by one YAML file.

Everything public is here. Nothing heavy is imported until it is used: torch,
torchvision, albumentations and matplotlib load with the first component that needs them.
"""

import importlib
import os

# albumentations asks the network for its newest version at import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.2.0.dev0"

_PUBLIC = {
    "Config": "cvkit.config",
    "load_config": "cvkit.config",
    "Registry": "cvkit.registry",
    "DATASETS": "cvkit.registry",
    "TRANSFORMS": "cvkit.registry",
    "SAMPLERS": "cvkit.registry",
    "MODELS": "cvkit.registry",
    "LAYERS": "cvkit.registry",
    "LOSSES": "cvkit.registry",
    "OPTIMIZERS": "cvkit.registry",
    "SCHEDULERS": "cvkit.registry",
    "METRICS": "cvkit.registry",
    "WRITERS": "cvkit.registry",
    "VISUALIZERS": "cvkit.registry",
    "SEARCHERS": "cvkit.registry",
    "PRUNERS": "cvkit.registry",
    "UserError": "cvkit.errors",
    "DataError": "cvkit.errors",
    "ImageData": "cvkit.data",
    "ImageFiles": "cvkit.data",
    "ImageSet": "cvkit.data",
    "build_data": "cvkit.data",
    "build_model": "cvkit.models",
    "Experiment": "cvkit.runs.experiment",
    "Run": "cvkit.runs.folder",
    "Runs": "cvkit.runs.compare",
    "Group": "cvkit.runs.group",
    "open_run": "cvkit.runs.folder",
    "open_group": "cvkit.runs.group",
    "evaluate": "cvkit.evaluation.run_evaluation",
    "Prediction": "cvkit.evaluation.predictor",
    "Predictor": "cvkit.evaluation.predictor",
    "export": "cvkit.deployment.export",
    "runs_folder": "cvkit.system.environment",
    "Reporter": "cvkit.reporting.reporter",
    "Trainer": "cvkit.training.trainer",
    "check": "cvkit.session",
    "find_lr": "cvkit.session",
    "train": "cvkit.session",
    "train_seeds": "cvkit.repeat",
    "train_folds": "cvkit.repeat",
    "load_sweep": "cvkit.config.load",
    "run_sweep": "cvkit.sweep.launch",
    "write_report": "cvkit.reporting.report",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cvkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
