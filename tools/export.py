"""The command `cvkit export` in a clone; what it does is in cvkit/cli/export.py."""

from cvkit.cli import run_command

if __name__ == "__main__":
    run_command("export")
