"""What is done, running, failed and missing under a folder of results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ablate.errors import UserError
from ablate.experiment.design import names
from ablate.results.store import Store

STATES = ("done", "running", "failed", "missing")


@dataclass(frozen=True, slots=True)
class State:
    """One run: its first name, where it stands, and the last line of what went wrong."""

    key: str
    levels: dict[str, Any]
    state: str
    detail: str


def states(out: Path) -> list[State]:
    """Return the state of every run that a sweep under `out` has named.

    Raises:
        UserError: nothing was swept there.
    """
    store = Store(out)
    found = {name["train_key"]: name["levels"] for name in reversed(names(out))}
    if not found:
        raise UserError(
            f"{out}: no sweep was started here; `ablate sweep out={out} ...` starts one"
        )
    return [_state(store, key, levels) for key, levels in sorted(found.items())]


def _state(store: Store, key: str, levels: dict[str, Any]) -> State:
    holder = store.claimed(key)
    if holder is not None:
        return State(key, levels, "running", f"process {holder.get('pid')} on {holder.get('host')}")
    if (store.folder(key) / "record.json").exists():
        return State(key, levels, "done", "")
    failure = store.given_up(key)
    if failure is not None:
        return State(key, levels, "failed", failure["error"])
    return State(key, levels, "missing", "")


def render(found: list[State], console: Console) -> None:
    """Print the counts, and a table of what is running or failed."""
    counts = {state: sum(s.state == state for s in found) for state in STATES}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()), highlight=False)
    shown = [s for s in found if s.state in ("running", "failed")]
    if not shown:
        return
    table = Table("cell", "state", "what", box=None)
    for entry in shown:
        table.add_row(f"{brief(entry.levels)} [dim]{entry.key}[/dim]", entry.state, entry.detail)
    console.print(table)


def brief(levels: dict[str, Any]) -> str:
    """Return a cell's levels in one short line, in the grid's words."""
    keys = ("masking", "plw", "adapter", "rank", "dataset", "model", "seed")
    words = [f"{key}={levels[key]}" for key in keys]
    return " ".join(words + ([f"sham={levels['sham']}"] if levels["sham"] != "a" else []))
