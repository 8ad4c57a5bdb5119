"""`ablate status`: what is done, running, failed, missing and damaged under a folder of results."""

import argparse
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.commands.verb import DEFAULT, Flag, Verb
from ablate.errors import UserError
from ablate.paths import check_results
from ablate.terminal import CONSOLE

if TYPE_CHECKING:
    from rich.console import Console

    from ablate.experiment.status import State

WATCH = 2.0  # seconds between two looks
LEAST, MOST = 0.2, 3600.0  # seconds that may be asked for


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    every, folders = given.watch, list(rest)
    if every is not None and not _is_number(every):  # `--watch results/mine`
        every, folders = "", [every, *rest]
    if len(folders) > 1:
        raise UserError(f"status: takes one folder, not {' '.join(folders)}")
    folder = Path((folders[0] if folders else DEFAULT).removeprefix("out="))
    check_results(folder)
    from ablate.experiment.status import notices, states

    if every is not None:
        _watch(folder, _seconds(every))
    found = states(folder)
    render(found, CONSOLE)
    for line in notices(folder):
        CONSOLE.print(line, soft_wrap=True, markup=False)
    return 1 if any(s.state in ("failed", "damaged") for s in found) else 0


def _watch(folder: Path, every: float) -> None:
    """Show the folder until all its runs have ended; Ctrl-C ends that before.

    Raises:
        UserError: no sweep was started there.
    """
    from ablate.following import Following

    with Following(folder, CONSOLE, every=every) as following:
        try:
            more = True
            while more:
                with contextlib.suppress(OSError):  # a file system that is away for a moment
                    more = following.look()
                if more:
                    time.sleep(every)
        except KeyboardInterrupt:
            return


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


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _seconds(text: str) -> float:
    """Return the seconds between two looks."""
    seconds = float(text or WATCH)
    if not LEAST <= seconds <= MOST:
        raise UserError(f"--watch={text}: must be a number of seconds, {LEAST:g} to {MOST:g}")
    return seconds


VERB = Verb(
    name="status",
    summary="done, running, failed, missing and damaged cells of a folder; --watch follows it",
    about=(
        "Counts the runs of a folder of results by state, and shows those running and those "
        "failed, or with a score that failed, with the last line of the error, and what is "
        "damaged. With --watch it follows what other processes or machines do there, without "
        "writing, until all has ended or Ctrl-C. Exit status 1 where a run failed or its record "
        "is damaged."
    ),
    words=f"[DIR={DEFAULT}]",
    options=(
        Flag(
            "--watch",
            f"follow the folder, a look every so many seconds (default {WATCH:g})",
            "SECONDS",
            bare=f"{WATCH:g}",
        ),
    ),
    examples=(
        "ablate status results/mine",
        "ablate status results/mine --watch",
        "ablate status --watch=10 out=results/mine",
    ),
    run=_run,
)
