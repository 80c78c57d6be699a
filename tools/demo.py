"""The command `cvkit demo` in a clone; what it does is in cvkit/cli/demo.py."""

from cvkit.cli import run_command

if __name__ == "__main__":
    run_command("demo")
