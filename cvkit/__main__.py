"""`python -m cvkit` is the command `cvkit`."""

from cvkit.cli.main import main

if __name__ == "__main__":
    main()
