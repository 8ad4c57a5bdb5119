"""`python -m ablate`: the plain Hydra application, or a verb."""

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


def _is_verb(words: list[str]) -> bool:
    """Return whether words ask for one of our verbs or our help, not for Hydra's application."""
    first = words[0] if words else "="
    return first == "--version" or not (first.startswith("-") or "=" in first)


if __name__ == "__main__":
    _forget_current_folder()
    words = sys.argv[1:]
    is_verb = _is_verb(words)
    if is_verb or {"-h", "--help"} & set(words):
        from ablate import cli

        sys.exit(cli.main(words if is_verb else ["--help"]))
    from ablate import app

    sys.exit(app.main(words))
