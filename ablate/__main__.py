"""`python -m ablate`: the plain Hydra application."""

import os
import sys
from pathlib import Path


def _forget_current_folder() -> None:
    """Remove the current folder from the import path, where a user may have an analysis.py."""
    here = Path.cwd().resolve()
    root = Path(__file__).resolve().parent.parent
    if here != root:
        named = [p for p in sys.path if p not in ("", os.curdir)]
        sys.path[:] = [p for p in named if Path(p).resolve() != here]


if __name__ == "__main__":
    _forget_current_folder()
    from ablate.app import main

    sys.exit(main(sys.argv[1:]))
