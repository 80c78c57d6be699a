"""The command `cvkit find-lr` in a clone; what it does is in cvkit/cli/find_lr.py."""

from cvkit.cli import run_command

if __name__ == "__main__":
    run_command("find-lr")
