"""Trains a recorded cell again and says whether it reproduces: bit for bit, or by how much.

What was trained is compared (the history of every step, the weights where they were kept) and what
was scored on it (scores, items). Where an environment differs that is named: the same bits are only
to be expected from the same versions, processor and threads.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from ablate.adapters import weights
from ablate.config.build import build
from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.experiment.identity import identify
from ablate.recording import HISTORY, ITEMS
from ablate.results.items import with_score_keys
from ablate.results.named import record_in
from ablate.results.store import Store
from ablate.run import WEIGHTS, run_cells

OF_NO_ENVIRONMENT = ("host", "pid", "start_seconds")
ITEM = ["score_key", "task", "metric", "doc_id"]
KEPT_MB = 1e12  # whatever their size, weights are kept to be compared
UNKNOWN = "not recorded"


@dataclass(frozen=True, slots=True)
class Compared:
    """One part of a record, and how the cell trained again differs in it; "" where it does not."""

    name: str
    size: str  # what was compared
    difference: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a recorded cell reproduces."""

    parts: tuple[Compared, ...]
    environment: tuple[str, ...]  # what differs: "torch 2.12.0, now 2.13.0"

    @property
    def same(self) -> bool:
        """Whether all that was compared is equal, bit for bit."""
        return not any(part.difference for part in self.parts)


def verify(store: Store, key: str) -> Verdict:
    """Return whether the recorded cell `key` reproduces; the record is left as it is.

    Raises:
        UserError: it is damaged, or its base model, data or code have changed, so that it would
            be another run.
    """
    record = record_in(store.folder(key))
    recorded = build(record["config"])
    check_same_run(recorded, key)
    execution = dataclasses.replace(
        recorded.execution, keep_weights_mb=KEPT_MB, checkpoint_minutes=None
    )
    cell: Cell = dataclasses.replace(recorded, execution=execution)
    with tempfile.TemporaryDirectory(prefix="ablate-verify-") as folder:
        again = Store(Path(folder))
        again.prepare()
        run_cells([cell], key, again)
        return compared(store, again, key)


def check_same_run(cell: Cell, key: str) -> None:
    """Check that a recorded configuration is still the run that it was.

    Raises:
        UserError: it is another.
    """
    now = identify(cell).train_key
    if now != key:
        raise UserError(
            f"{key}: its base model, its data or the code that trains have changed since; the same "
            f"configuration is now run {now}"
        )


def compared(one: Store, other: Store, key: str) -> Verdict:
    """Return how the record of `key` in the store `other` differs from that in `one`."""
    records = [store.record(key) for store in (one, other)]
    then, now = (record for record in records if record is not None)
    folders = one.folder(key), other.folder(key)
    parts = [_history(*folders), _weights(*folders), *_scores(then, now), _items(folders, then)]
    found = tuple(part for part in parts if part)
    return Verdict(found, tuple(differing(then["provenance"], now["provenance"])))


def _history(then: Path, now: Path) -> Compared | None:
    """Compare every column of every step."""
    one, other = (pd.read_parquet(folder / HISTORY) for folder in (then, now))
    if one.empty and other.empty:
        return None
    size = f"{len(one)} steps"
    if len(one) != len(other) or set(one.columns) != set(other.columns):
        return Compared("history", size, f"{len(other)} steps now, or other columns")
    apart = pd.DataFrame({name: ~_equal(one[name], other[name]) for name in one})
    if not apart.to_numpy().any():
        return Compared("history", size)
    first = int(one["step"][apart.any(axis=1)].iloc[0])
    columns = ", ".join(str(name) for name in apart if apart[name].any())
    off = (one["loss"] - other["loss"]).abs() / one["loss"].abs()
    return Compared(
        "history", size,
        f"from step {first} on in {columns}; the loss by at most {off.max():.2g} of itself",
    )  # fmt: skip


def _equal(one: "pd.Series[Any]", other: "pd.Series[Any]") -> "pd.Series[bool]":
    return (one == other) | (one.isna() & other.isna())


def _weights(then: Path, now: Path) -> Compared | None:
    """Compare every tensor, where they were kept."""
    if not weights.kept(then / WEIGHTS):
        return None
    one, other = _tensors(then / WEIGHTS), _tensors(now / WEIGHTS)
    size = f"{len(one)} tensors"
    if one.keys() != other.keys():
        return Compared(
            "weights", size, f"{len(one.keys() ^ other.keys())} that only one of them has"
        )
    apart = [name for name, tensor in one.items() if not _same_bits(tensor, other[name])]
    if not apart:
        return Compared("weights", size)
    if any(one[name].shape != other[name].shape for name in apart):
        return Compared("weights", size, "other shapes")
    off = max(float((one[n].double() - other[n].double()).abs().max()) for n in apart)
    largest = max(float(one[n].double().abs().max()) for n in apart)
    return Compared(
        "weights", size, f"{len(apart)} by at most {off:.2g} (largest weight {largest:.2g})"
    )


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same, bit for bit: -0 is not 0, and NaN is itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _tensors(folder: Path) -> dict[str, Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def _scores(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Compared]:
    """Compare the scores that the recorded configuration asks for; others are counted."""
    one, other = ({(s["score_key"], s["metric"]): s for s in r["scores"]} for r in (then, now))
    asked = [place for place in one if place[0] in now["score_keys"]]
    apart = {p: other[p]["value"] if p in other else None for p in asked}
    apart = {p: value for p, value in apart.items() if value != one[p]["value"]}
    told = ""
    if apart:
        place = max(apart, key=lambda p: abs((apart[p] or 0.0) - one[p]["value"]))
        which = f"{one[place]['task']} {place[1]}"
        told = f"{len(apart)}, {which} most: {one[place]['value']:.6g}, now {apart[place]}"
    if asked:
        yield Compared("scores", f"{len(asked)} scores", told)
    if left := len(one) - len(asked):
        yield Compared("not compared", f"{left} scores that were asked for by other configurations")


def _items(folders: tuple[Path, Path], then: Mapping[str, Any]) -> Compared | None:
    """Compare what single items got: scores, answers, log-likelihoods."""
    tables = [with_score_keys(pd.read_parquet(f / ITEMS), then["scores"]) for f in folders]
    one, other = (table.set_index(ITEM).sort_index() for table in tables)
    one = one[one.index.get_level_values(0).isin(other.index.get_level_values(0))]
    if one.empty:
        return None
    size = f"{len(one)} items"
    if not one.index.equals(other.index):
        return Compared("items", size, "other items")
    apart = {
        column: int((one[column].map(_plain) != other[column].map(_plain)).sum())
        for column in one.columns.intersection(other.columns)
    }
    told = ", ".join(f"{column} of {count}" for column, count in apart.items() if count)
    return Compared("items", size, told)


def _plain(value: Any) -> Any:
    """Return a value of a table's field that equals itself."""
    if hasattr(value, "tolist"):
        return repr(value.tolist())
    return "" if pd.isna(value) else value


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs in the environments of two records: code, versions, machine, lanes."""
    for part in ("code", "packages", "hardware"):
        one, other = then.get(part) or {}, now.get(part) or {}
        for name in dict.fromkeys((*one, *other)):
            before, after = (side.get(name, UNKNOWN) for side in (one, other))
            if before != after and name not in OF_NO_ENVIRONMENT:
                yield f"{name} {before}, now {after}"
    if then.get("lanes", 1) != now.get("lanes", 1):
        yield f"trained beside {then['lanes'] - 1} other cells, now alone"
