"""Which folders are packages; all else of the package is described in pyproject.toml."""

from setuptools import find_packages, setup

# The configs of the clone are installed as cvkit/configs.
setup(packages=[*find_packages(include=["cvkit", "cvkit.*"]), "cvkit.configs"],
      package_dir={"cvkit.configs": "configs"})
