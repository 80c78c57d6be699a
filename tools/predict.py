"""The command `cvkit predict` in a clone; what it does is in cvkit/cli/predict.py."""

from cvkit.cli import run_command

if __name__ == "__main__":
    run_command("predict")
