"""The command `cvkit compare` in a clone; what it does is in cvkit/cli/compare.py."""

from cvkit.cli import run_command

if __name__ == "__main__":
    run_command("compare")
