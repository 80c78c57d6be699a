"""`metrics.jsonl` by the name of a writer."""

from __future__ import annotations

from cvkit.registry import WRITERS
from cvkit.reporting.reporter import Reporter


@WRITERS.register("jsonl")
class JsonLines(Reporter):
    """One JSON object per epoch in `metrics.jsonl`. Every run has it; it need not be listed."""
