"""The terminal that verbs and sweeps print to, and how a duration is written there."""

from rich.console import Console

CONSOLE = Console(highlight=False)


def duration(seconds: float) -> str:
    """Return `seconds` in the unit that a reader would choose: 42 s, 12 min, 3.5 h, 1,200 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours = seconds / 3600
    if hours < 2:
        return f"{seconds / 60:.0f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"
