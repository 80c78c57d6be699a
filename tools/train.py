"""The command `cvkit train` in a clone; what it does is in cvkit/cli/train.py."""

from cvkit.cli import run_command

if __name__ == "__main__":
    run_command("train")
