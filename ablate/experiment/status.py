"""Which runs of a design or of a folder of results are done, running, failed, missing or damaged.

A damaged record counts as none: it is to be trained again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.experiment.design import Design, Named, damaged_designs, names
from ablate.results import repairs
from ablate.results.leases import Holder
from ablate.results.store import Store

STATES = ("done", "running", "failed", "missing", "damaged")


@dataclass(frozen=True, slots=True)
class State:
    """One run: its key, the levels of its first name, its state and the reason for it."""

    key: str
    levels: dict[str, Any]
    state: str  # one of STATES
    detail: str


def states(out: Path) -> list[State]:
    """Return the state of every run that a sweep under `out` has named.

    Raises:
        UserError: no sweep was started there.
    """
    store = Store(out)
    found = {name["train_key"]: name["levels"] for name in reversed(names(out))}
    if not found and damaged_designs(out):
        raise UserError(f"{out}/designs is damaged; the sweep, started again, writes it anew")
    if not found:
        raise UserError(
            f"{out}: no sweep was started here; `ablate sweep out={out} ...` starts one"
        )
    return [_state(store, key, levels) for key, levels in sorted(found.items())]


def _state(store: Store, key: str, levels: dict[str, Any]) -> State:
    holder = store.claimed(key)
    if holder is not None:
        return State(key, levels, "running", _running(holder))
    record = store.record(key)
    if record is not None:
        return State(key, levels, "done", unscored_text(record))
    if fault := store.fault(key):
        return State(key, levels, "damaged", f"{fault}; a sweep trains it again")
    failure = store.given_up(key)
    if failure is not None:
        return State(key, levels, "failed", failure["error"])
    return State(key, levels, "missing", "trained, not scored" if store.is_trained(key) else "")


def _running(holder: Holder) -> str:
    at = f", at {holder.place}" if holder.place else ""
    return f"process {holder.process.pid} on {holder.process.host}{at}"


def notices(out: Path) -> list[str]:
    """Return what else must be known of a folder: names that are damaged, results set aside."""
    kept = [path.name for path in repairs.kept_results(Store(out))]
    return [
        *damaged_designs(out),
        *(f"kept/{name} is a result that could not have its place in cells/" for name in kept),
    ]


def damaged_lines(out: Path) -> list[str]:
    """Return a line for what is damaged under `out`: grids' names, and records that they name."""
    store, keys = Store(out), sorted({name["train_key"] for name in names(out)})
    return [
        *(f"cells/{key} is damaged: {fault}" for key, fault in damaged(keys, store).items()),
        *notices(out),
    ]


def damaged(keys: Iterable[str], store: Store) -> dict[str, str]:
    """Return which of the runs have a damaged record, and what is damaged of it."""
    present = frozenset(store.present())
    found = {key: store.fault(key) for key in keys if key in present}
    return {key: fault for key, fault in found.items() if fault}


def unscored_text(record: Mapping[str, Any]) -> str:
    """Return what of a run could not be scored and why, in one line; empty where all was."""
    lost = record.get("unscored", ())
    return "; ".join(f"{one['asked']} not scored: {one['error']}" for one in lost)


def missing(plan: Design, store: Store) -> dict[str, list[Named]]:
    """Return the runs of `plan` that lack a score and may still be tried, by train_key."""
    attempted = store.attempted()
    lacking = unrecorded(plan, store)
    return {k: v for k, v in lacking.items() if k not in attempted or store.given_up(k) is None}


def unrecorded(plan: Design, store: Store) -> dict[str, list[Named]]:
    """Return the runs of `plan` that lack a score, by train_key."""
    lacking, present = {}, frozenset(store.present())  # a grid may have a million runs
    for key, named in plan.runs.items():
        record = store.record(key) if key in present else None
        units = (unit.key for one in named for unit in one.identity.units)
        if record is None or not set(units) <= set(record["score_keys"]):
            lacking[key] = named
    return lacking


def is_kept(key: str, store: Store) -> bool:
    """Return whether a run's trained weights are here, so that it is scored without training."""
    if store.is_trained(key):
        return True
    has_weights = (store.folder(key) / "weights").is_dir()
    return has_weights and store.record(key) is not None  # what is damaged is trained again
