"""What a training tells, and the report of a run."""

from cvkit.reporting import jsonl, tensorboard  # noqa: F401  they register their writers
