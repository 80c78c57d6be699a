"""Configs: what may be set, where each value came from, and one rule of merging."""

from cvkit.config.check import check_components, components
from cvkit.config.load import load_config, read_config
from cvkit.config.schema import BASE, SCHEMA
from cvkit.config.tree import COMMAND_LINE, DEFAULT, PYTHON, Config

__all__ = ["BASE", "COMMAND_LINE", "DEFAULT", "PYTHON", "SCHEMA", "Config",
           "check_components", "components", "load_config", "read_config"]
