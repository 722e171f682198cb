"""Runs the `pliant` command: `python -m pliant.scripts`, or `python scripts` in a checkout."""

import sys

if __name__ == "__main__":
    try:
        from pliant.scripts.main import script
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pliant":
            raise
        sys.exit("pliant is not installed: run `pip install -e .` in the checkout, or `make train`, which does so")
    sys.exit(script())
