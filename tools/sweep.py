"""The command `cvkit sweep` in a clone; what it does is in cvkit/cli/sweep.py."""

from cvkit.cli import run_command

if __name__ == "__main__":
    run_command("sweep")
