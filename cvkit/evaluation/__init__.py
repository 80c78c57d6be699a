"""Evaluating a model, and the metrics that are measured."""
