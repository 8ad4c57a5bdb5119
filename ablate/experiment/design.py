"""A grid with the identity of every cell: runs, aliases and illegal cells.

The first cell of a run in the grid's order names it; later ones are aliases. For every pair of
base model and data set the untouched base (adapter `none`) is added, and scored once, unless the
setting `score_base` leaves it out.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablate.adapters import registry
from ablate.config.build import plain
from ablate.config.grid import GridCell
from ablate.config.overrides import key_of
from ablate.config.schema import Adapter, Cell, Train
from ablate.errors import UserError
from ablate.evaluate.chosen import with_chosen
from ablate.experiment import regularisers
from ablate.experiment.identity import Asked, Identity, Memo, digest, identify
from ablate.experiment.known import Here
from ablate.experiment.tuned import Rates, default_lr, is_full_rate
from ablate.experiment.tuned_table import Tuned
from ablate.results import record
from ablate.results.store import Store

NAMED = {"levels", "train_key", "score_keys", "effective_plw", "rg", "train_rows"}
BASE = Adapter(name="none", kind="none")


@dataclass(frozen=True, slots=True)
class Named:
    """A cell of the grid under one of its names."""

    cell: Cell
    identity: Identity
    levels: Mapping[str, Any]  # of what varies in this grid
    alias: bool = False
    overrides: tuple[str, ...] = ()  # that make it; of an untouched base none

    @property
    def key(self) -> str:
        """The run's train_key."""
        return self.identity.train_key


@dataclass(frozen=True, slots=True)
class Design:
    """A checked grid: its cells in order, the runs that they name, and what is illegal."""

    study: str
    cells: tuple[Named, ...]
    runs: Mapping[str, list[Named]]  # by train_key, the names of each run in grid order
    illegal: tuple[tuple[dict[str, Any], str], ...]
    asked: tuple[str, ...] = ()  # dotted paths of the settings that the request gave
    tuned: tuple[Tuned, ...] = ()  # the rows of tables that gave cells their rates


def design(
    cells: Iterable[GridCell],
    *,
    study: str,
    skip_illegal: bool = False,
    bases: bool = True,
    known: Here | None = None,
    rates: Rates | None = None,
) -> Design:
    """Return the design of a grid, every cell of which is checked before anything is trained.

    Args:
        cells: the grid's.
        study: its name.
        skip_illegal: leave illegal cells out.
        bases: add the untouched base of every model and data set.
        known: where models and data are found; on this machine and the hub unless given.
        rates: the tables of tuned learning rates; the shipped ones unless given.

    Raises:
        UserError: a cell is illegal (unless `skip_illegal` leaves those out), or none is left.
    """
    memo, rates = Memo(known), rates or Rates()
    legal: list[Named] = []
    illegal: list[tuple[dict[str, Any], str]] = []
    asked: dict[str, None] = {}
    for entry in cells:
        asked |= dict.fromkeys(key for key in map(key_of, entry.overrides) if "." in key)
        try:
            if entry.cell is None:
                raise UserError(entry.error or "cannot be built")
            cell = resolve_cell(entry.cell, memo, rates)
            identity = identify(cell, memo)
            legal.append(Named(cell, identity, entry.levels, overrides=entry.overrides))
        except UserError as error:
            illegal.append((dict(entry.levels), str(error)))
    if illegal and not (skip_illegal and legal):
        raise UserError(_refusal(illegal, len(legal)))
    named = tuple(_name(_with_bases(legal, memo) if bases else legal))
    runs: dict[str, list[Named]] = {}
    for one in named:
        runs.setdefault(one.key, []).append(one)
    return Design(study, named, runs, tuple(illegal), tuple(asked), tuple(rates.used))


def _refusal(illegal: list[tuple[dict[str, Any], str]], legal: int) -> str:
    first = illegal[0][1]
    if not legal:
        return first
    total = len(illegal) + legal
    return (
        f"{first} ({len(illegal)} of {total} cells are illegal; skip_illegal=true leaves them out)"
    )


def resolve_cell(cell: Cell, memo: Memo, rates: Rates | None = None) -> Cell:
    """Return `cell` with its rate, precision and items, and its regulariser's settings in place.

    A rate that nobody tuned is a default, which `train.untuned` says; `train.full_rate` says that a
    given one is a rate of full fine-tuning on an adapter.
    Weight decay, label smoothing and adapter dropout move to the optimizer, the loss and the
    adapter, so that equal settings are one run under any name. Where nothing changes the cell
    itself is returned.

    Raises:
        UserError: its adapter cannot apply the regulariser, or its model cannot be read.
    """
    if cell.evaluate.items is not None:
        evaluate = memo.get(cell.evaluate, ("chosen",), lambda: with_chosen(cell.evaluate))
        cell = replace(cell, evaluate=evaluate)
    if cell.base_precision == "auto":
        cell = replace(cell, base_precision=registry.automatic_precision(cell))
    if cell.is_base:
        return cell
    if cell.train.lr == "tuned":
        arm = (cell.train, cell.model, cell.dataset, cell.adapter, cell.init, cell.optimizer)
        train = memo.joint(arm, ("rated", cell.rank), lambda: _rated(cell, memo, rates or Rates()))
        cell = replace(cell, train=train)
    else:
        given = (cell.train, cell.model, cell.adapter)
        train = memo.joint(given, ("given",), lambda: _given(cell, memo))
        cell = cell if train is cell.train else replace(cell, train=train)
    regularisers.check(cell)
    asked, left = cell.regulariser, regularisers.left(cell.regulariser)
    if left is asked:
        return cell
    changes: dict[str, Any] = {"regulariser": left}
    if asked.weight_decay is not None:
        changes["train"] = replace(cell.train, weight_decay=asked.weight_decay)
    if asked.label_smoothing is not None:
        changes["loss"] = replace(cell.loss, label_smoothing=asked.label_smoothing)
    if asked.adapter_dropout is not None:
        changes["adapter"] = _dropping(cell, asked.adapter_dropout, memo)
    return replace(cell, **changes)


def _rated(cell: Cell, memo: Memo, rates: Rates) -> Train:
    """Return the cell's training with the rate tuned for it, or else the default."""
    row = rates.row(cell)
    if row is not None:
        return replace(cell.train, lr=row.lr)
    return replace(cell.train, lr=default_lr(cell, memo.files(cell.model)), untuned=True)


def _given(cell: Cell, memo: Memo) -> Train:
    """Return the cell's training at its given rate, marked where that is one of full tuning."""
    try:
        files = memo.files(cell.model)
    except UserError:  # told where the cell's identity is made
        return cell.train
    return replace(cell.train, full_rate=True) if is_full_rate(cell, files) else cell.train


def _dropping(cell: Cell, share: float, memo: Memo) -> Adapter:
    """Return the cell's adapter with a dropout: one object for all cells, which the memo needs."""

    def make() -> Adapter:
        return replace(cell.adapter, options=regularisers.options_with_dropout(cell, share))

    found: Adapter = memo.get(cell.adapter, ("dropout", share), make)
    return found


def _with_bases(legal: list[Named], memo: Memo) -> list[Named]:
    """Return the untouched base of each model and data set, then the cells."""
    bases: dict[tuple[str, int, int], Named] = {}
    for named in legal:
        cell, files = named.cell, named.identity.files
        mark = (files.content_hash, id(cell.dataset), id(cell.evaluate))
        if mark not in bases and not cell.is_base:
            base = _base(cell)
            groups = ("model", "dataset")
            levels = {k: v for k, v in named.levels.items() if k.partition(".")[0] in groups}
            bases[mark] = Named(base, identify(base, memo), levels | {"adapter": "none"})
    distinct = {
        (b.key, b.cell.dataset.name, b.cell.dataset.path, b.identity.asked): b
        for b in reversed(bases.values())
    }
    return [*reversed(distinct.values()), *legal]


def _base(cell: Cell) -> Cell:
    """Return the untouched base of a cell, with a loss that is allowed whatever the cell's is."""
    masking = replace(cell.masking, weights={**cell.masking.weights, "completion": 1.0})
    loss: dict[str, Any] = {"masking": masking, "plw": 0.0, "completion_weight": 1.0}
    train = replace(cell.train, full_rate=False)
    return replace(cell, adapter=BASE, rank=1, seed=0, sham="a", train=train, **loss)


def _name(cells: list[Named]) -> Iterable[Named]:
    """Yield the cells, marked where they are another name of what an earlier one asks for.

    A cell that asks for a further score of a run is no alias: that score is new.
    """
    seen: dict[str, tuple[Asked, ...]] = {}
    for named in cells:
        asked, known = named.identity.asked, seen.get(named.key)
        if known is None:
            seen[named.key] = asked
            yield named
        elif known is asked or set(asked) <= set(known):
            yield replace(named, alias=True)
        else:
            seen[named.key] = (*known, *asked)
            yield named


def save(plan: Design, out: Path) -> Path:
    """Return the file, newly written, with the grid's names, which `collect` reads.

    Settings that all cells share are written once.
    """
    names = [_entry(named, plan.study) for named in plan.cells]
    every = [set(_pairs(name["settings"])) for name in names]
    shared = set.intersection(*every) if every else set()
    common = {k: v for k, v in names[0]["settings"].items() if (k, json.dumps(v)) in shared}
    for name in names:
        name["settings"] = {k: v for k, v in name["settings"].items() if k not in common}
    path = out / "designs" / f"{digest(names)}.json"
    about = {"study": plan.study, "asked": plan.asked, "common": common}
    Store(out).put(path, json.dumps(about | {"names": names}).encode())
    return path


def _pairs(settings: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    return ((key, json.dumps(value)) for key, value in settings.items())


def heads_of(plan: Design) -> dict[str, dict[str, Any]]:
    """Return what the results table would say of every run of a plan, which has no records yet."""
    entries = [_entry(named, plan.study) | {"status": "missing"} for named in plan.cells]
    named = _with_columns(entries, plan.asked)
    return {
        entry["train_key"]: dict(entry["levels"]) | record.facts_of(entry, None)
        for entry in reversed(named)
    }


def _entry(named: Named, study: str) -> dict[str, Any]:
    data = named.identity.data
    settings = record.flattened(plain(named.cell))
    levels = record.levels_of(settings, study)
    if named.cell.is_base:  # the base is not trained: no loss, no rate
        levels |= {"masking": "none", "plw": 0.0, "token_rule": "none", "lr": None}
    return {
        "levels": levels,
        "settings": settings,
        "train_key": named.key,
        "score_keys": [unit.key for unit in named.identity.units],
        "alias": named.alias,
        "effective_plw": named.identity.effective_plw,
        "rg": data.rg_tokens,
        "train_rows": data.rows,
    }


def _with_columns(entries: list[dict[str, Any]], asked: Iterable[str]) -> list[dict[str, Any]]:
    """Return the names with a level for every setting that varies over all of them."""
    trained = [e["settings"] for e in entries if e["levels"]["adapter"] != BASE.name]
    columns = record.setting_columns(trained, set(asked))
    return [
        entry | {"levels": entry["levels"] | record.shown_settings(
            entry["settings"], columns, base=entry["levels"]["adapter"] == BASE.name)}
        for entry in entries
    ]  # fmt: skip


def names(out: Path) -> list[dict[str, Any]]:
    """Return every distinct name that sweeps have written under `out`, oldest design first.

    A setting that varies in one sweep has the value that it had in the others too. A name that a
    later sweep asked for with other benchmarks is one name with all their scores.
    """
    store = Store(out)
    entries: list[dict[str, Any]] = []
    asked: set[str] = set()
    for design in _designs(out)[0]:
        asked |= set(design.get("asked", ()))
        for name in design["names"]:
            whole = {"levels": record.SINCE | name["levels"]}
            entries.append(name | whole | {"settings": _settings(name, design, store)})
    found: dict[str, dict[str, Any]] = {}
    for name in _with_columns(entries, asked):
        known = found.setdefault(digest([name["levels"], name["train_key"]]), name)
        known["score_keys"] = sorted({*known["score_keys"], *name["score_keys"]})
    return list(found.values())


def damaged_designs(out: Path) -> list[str]:
    """Return a line for each file of a grid's names under `out` that is damaged."""
    return _designs(out)[1]


def whole_designs(out: Path) -> set[Path]:
    """Return the files of grids' names under `out` that are not damaged."""
    return {path for path in (out / "designs").glob("*.json") if _read_design(path)}


def _designs(out: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the grids that sweeps have written under `out`, oldest first, and what is damaged."""
    found: list[tuple[float, dict[str, Any]]] = []
    damaged = []
    for path in sorted((out / "designs").glob("*.json")):
        if design := _read_design(path):
            found.append(design)
        else:
            damaged.append(f"designs/{path.name} is damaged: its sweep, started again, writes it")
    return [design for _, design in sorted(found, key=lambda one: one[0])], damaged


def _read_design(path: Path) -> tuple[float, dict[str, Any]] | None:
    """Return when a grid's names were written, and the grid; None where the file is damaged."""
    try:
        text = path.read_text() if path.is_file() else ""  # a pipe would be waited for
        design, when = json.loads(text), path.stat().st_mtime_ns
    except (OSError, ValueError, RecursionError):
        return None
    return (when, design) if _is_design(design, path.stem) else None


def _is_design(design: Any, key: str) -> bool:
    """Return whether a grid's names are as `save` wrote them; older ones had another key."""
    if not isinstance(design, dict) or not isinstance(design.get("names"), list):
        return False
    names = design["names"]
    whole = all(isinstance(n, dict) and n.keys() >= NAMED for n in names)
    stated = whole and all("settings" in n for n in names)
    return whole and (not stated or (digest(names) == key and "common" in design))


def _settings(name: Mapping[str, Any], design: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """Return the flattened configuration of a name: its own, or in an older design its record's."""
    if "settings" in name:
        return dict(design["common"]) | dict(name["settings"])
    recorded = store.record(name["train_key"])
    config = record.flattened(recorded["config"]) if recorded else {}
    levels = name["levels"]
    stated = {path: levels[k] for k, path in record.LEVEL_PATHS.items() if k in levels}
    return config | stated | {k: v for k, v in levels.items() if "." in k}


def collect(out: Path, into: Path | None = None) -> Path:
    """Write and return `out`/results.parquet, made from the records and the grid's names.

    Args:
        out: the folder of results.
        into: another file to write.
    """
    store = Store(out)
    rows: list[dict[str, Any]] = []
    runs: dict[str, dict[str, Any] | None] = {}
    for name in names(out):
        key = name["train_key"]
        if key not in runs:
            runs[key] = store.record(key)
        status = _status(store, key, runs[key])
        rows += record.rows_of(name | {"status": status}, runs[key])
    _mark_aliases(rows)
    path = into or out / "results.parquet"
    store.put(path, record.table(rows))
    return path


def _status(store: Store, key: str, found: Mapping[str, Any] | None) -> str:
    if found:
        return "done"
    if store.fault(key):
        return "damaged"
    return "failed" if store.failures(key) else "missing"


def _mark_aliases(rows: list[dict[str, Any]]) -> None:
    """Mark every row whose score an earlier row has, so that each run is counted once."""
    seen: set[tuple[str, str]] = set()  # a score has one row per metric
    for row in rows:
        score, metric = row.get("score_key"), row.get("metric")
        row["alias"] = (score, metric) in seen
        if score is not None:
            seen.add((f"{score}", f"{metric}"))
