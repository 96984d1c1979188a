"""What every script needs: flags, errors, files, processes of Ray; and, set here because PyTorch reads or delays it
from the moment it is imported, how its threads wait and what Ctrl-C says."""

import os
import sys
from pathlib import Path

# Threads of OpenMP spin between two parallel regions, of which a small network has many: what runs beside them starves.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# NumPy's products here are small: further threads would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _say_interrupted(kind, error, trace):
    """Make one line of a Ctrl-C that comes before the script itself runs, such as while it imports PyTorch."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print(f"{Path(sys.argv[0]).name}: interrupted; the same command goes on from here", file=sys.stderr)


sys.excepthook = _say_interrupted
