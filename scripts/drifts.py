"""`python scripts/drifts.py` is `pliant drifts`."""

import sys

if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("drifts"))
