"""Configs: what may be set, where each value came from, and one rule of merging."""

from cvkit.config.check import check_components, components
from cvkit.config.load import load_config, read_config
from cvkit.config.schema import SCHEMA
from cvkit.config.tree import COMMAND_LINE, Config

__all__ = ["COMMAND_LINE", "SCHEMA", "Config", "check_components", "components", "load_config",
           "read_config"]
