"""Pictures, one per file. A visualizer is a function that returns a matplotlib figure.

It asks for what it draws by the names of its parameters (`run, runs, predictions, model,
loaders, data, config`), with a default only for what may be absent; its other parameters are set
in the config or by flags.
"""

from cvkit.visualizers import (  # noqa: F401  each registers its own
    calibration,
    cam,
    cam_average,
    cam_faithfulness,
    confusion,
    curve_band,
    curves,
    dataset,
    disagreements,
    duplicates,
    embedding,
    filters,
    label_errors,
    lr_finder,
    misclassified,
    per_class,
    robustness,
    roc,
    samples,
    summary,
    top_losses,
    wrong_in_all,
)
