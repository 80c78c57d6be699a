"""Searching for the values of keys of a config: trials are runs, Optuna proposes what to try."""
