"""`ablate status`: what is done, running, failed, missing and damaged under a folder of results."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.commands.verb import DEFAULT, Verb
from ablate.errors import UserError
from ablate.terminal import CONSOLE

if TYPE_CHECKING:
    from rich.console import Console

    from ablate.experiment.status import State


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    from ablate.experiment.status import notices, states

    if len(rest) > 1:
        raise UserError(f"ablate status: takes one folder, not {' '.join(rest)}")
    folder = rest[0] if rest else DEFAULT
    found = states(Path(folder.removeprefix("out=")))
    render(found, CONSOLE)
    for line in notices(Path(folder.removeprefix("out="))):
        CONSOLE.print(line, soft_wrap=True, markup=False)
    return 1 if any(s.state in ("failed", "damaged") for s in found) else 0


def render(found: "list[State]", console: "Console") -> None:
    """Print the number of runs in each state, and those running, failed or without a score."""
    from rich.table import Table

    from ablate.experiment.status import STATES

    counts = {state: sum(s.state == state for s in found) for state in STATES}
    counts = {k: n for k, n in counts.items() if n or k != "damaged"}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()))
    shown = [s for s in found if s.detail or s.state in ("running", "failed")]
    if not shown:
        return
    table = Table("cell", "state", "reason", box=None)
    for entry in shown:
        table.add_row(f"{brief(entry.levels)} [dim]{entry.key}[/dim]", entry.state, entry.detail)
    console.print(table)


def brief(levels: dict[str, Any]) -> str:
    """Return the main levels of a cell in one line of overrides."""
    keys = ("masking", "plw", "adapter", "rank", "dataset", "model", "seed")
    settings = [key for key in levels if "." in key]
    shown = [f"{key}={levels[key]}" for key in (*keys, *settings)]
    return " ".join(shown + ([f"sham={levels['sham']}"] if levels["sham"] != "a" else []))


VERB = Verb(
    name="status",
    summary="done, running, failed, missing and damaged cells of a folder",
    about=(
        "Counts the runs of a folder of results by state, and shows those running and those "
        "failed, or with a score that failed, with the last line of the error, and what is "
        "damaged. Exit status 1 where a run failed or its record is damaged."
    ),
    words=f"[DIR={DEFAULT}]",
    examples=("ablate status", "ablate status results/mine", "ablate status out=results/mine"),
    run=_run,
)
