"""`python scripts/interventions.py` is `pliant interventions`."""

import sys

if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("interventions"))
