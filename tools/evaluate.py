"""The command `cvkit evaluate` in a clone; what it does is in cvkit/cli/evaluate.py."""

from cvkit.cli import run_command

if __name__ == "__main__":
    run_command("evaluate")
