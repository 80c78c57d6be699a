"""The command `cvkit registry` in a clone; what it does is in cvkit/cli/registry.py."""

from cvkit.cli import run_command

if __name__ == "__main__":
    run_command("registry")
