"""The commands: each is a file with its `parser()` and its `main(words)`, listed in main.py."""

from cvkit.cli.tool import new_parser, parse_words, run_command, run_tool

__all__ = ["new_parser", "parse_words", "run_command", "run_tool"]
