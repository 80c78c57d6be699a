"""What a training tells, and the report of a run."""

from cvkit.reporting import jsonl, mlflow, tensorboard, wandb  # noqa: F401  register their writers
