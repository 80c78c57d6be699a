"""The command `cvkit visualize` in a clone; what it does is in cvkit/cli/visualize.py."""

from cvkit.cli import run_command

if __name__ == "__main__":
    run_command("visualize")
