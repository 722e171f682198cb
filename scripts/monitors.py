"""`python scripts/monitors.py` is `pliant monitors`."""

import sys

if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("monitors"))
