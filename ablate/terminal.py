"""The terminal that verbs and sweeps print to, and how a duration is written there."""

from rich.console import Console

CONSOLE = Console(highlight=False)


def duration(seconds: float) -> str:
    """Return `seconds` in the unit that a reader would choose: 42 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
