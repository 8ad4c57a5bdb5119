"""The items of a study for a page: what every run scored on them, and what some of it answered.

Scores are a bit an item where it is right or wrong, else a byte. Where they are too many, the
items stay on which runs differ most. What was answered is there for the items that a run got wrong
and most others right, and for those that it and its nearest neighbour answered differently, for as
many runs as there is room.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.explorer.names import Names
from analysis.explorer.packing import Packer
from analysis.table.items import FILE, RIGHT, Items

SCORE_BYTES = 1_000_000  # of all scores
TEXT = 600_000  # characters of what was asked and answered
MOST_READ = 60  # runs whose answers are read
WORST = 20  # items of a task that a run did worst on, and as many that flipped
CUT = 240  # characters of an answer or of the right one
PROMPT_CUT = 600  # characters of a prompt
MISSING = 255  # a byte for an item that a run was not scored on

# By task: the numbers of the items in their order, and what was answered to each.
Answers = dict[str, tuple[npt.NDArray[Any], list[str]]]


@dataclass
class _Texts:
    """Texts that occur several times, each kept once."""

    places: dict[str, int] = field(default_factory=dict)
    used: int = 0

    def place(self, text: str, most: int = CUT) -> int:
        cut = text if len(text) <= most else f"{text[: most - 1]}…"
        if cut not in self.places:
            self.places[cut] = len(self.places)
            self.used += len(cut)
        return self.places[cut]


def items_data(
    items: Items, names: Names, folder: Path, pack: Packer, prompts: pd.DataFrame | None = None
) -> dict[str, Any]:
    """Return the items of a study for its page.

    Args:
        items: the scores.
        names: the runs, to which positions refer.
        folder: of the results.
        pack: for the arrays.
        prompts: task, doc_id and prompt, where they are known.
    """
    kept = _kept(items)
    place = pd.Series(np.arange(len(names.runs)), index=names.runs["run"].astype(str))
    run_R = place[items.runs["run"].astype(str)].to_numpy()
    texts = _Texts()
    answers = _answers(items, kept, run_R, names, folder, texts)
    asked = {} if prompts is None else _asked(prompts)
    tasks = []
    for task, index in kept.items():
        doc = items.items["doc_id"].to_numpy()[index]
        gold = [answers.gold.get((task, int(d)), "") for d in doc]
        own = {
            "name": task, "doc": pack.codes(doc), "of": int((items.items["task"] == task).sum()),
            "gold": pack.codes([texts.place(g) for g in gold]),
            "answered": pack.array(answers.flat(task), "i32"),
        }  # fmt: skip
        if asked:
            shown = [asked.get((task, int(d)), "") for d in doc]
            own["prompt"] = pack.codes([texts.place(p, PROMPT_CUT) for p in shown])
        tasks.append(own | _scores(items.scores_RI[:, index], pack))
    return {
        "runs": pack.codes(run_R), "tasks": tasks, "read": len(answers.runs),
        "texts": list(texts.places),
    }  # fmt: skip


def _asked(prompts: pd.DataFrame) -> dict[tuple[str, int], str]:
    keys = zip(prompts["task"].astype(str), prompts["doc_id"].astype(int), strict=True)
    return dict(zip(keys, prompts["prompt"].astype(str), strict=True))


def _kept(items: Items) -> dict[str, npt.NDArray[np.intp]]:
    """Return the items of every task that there is room for: those on which runs differ most."""
    size = 0.0
    found = {}
    for task, own in items.items.groupby("task", observed=True, sort=False):
        found[str(task)] = own.index.to_numpy()
        size += len(items.runs) * len(own) / (8 if own["binary"].all() else 1)
    share = min(1.0, SCORE_BYTES / max(size, 1.0))
    if share == 1:
        return found
    spread_I = np.nan_to_num(np.nanvar(items.scores_RI, axis=0))
    cut = {}
    for task, index in found.items():
        best = index[np.argsort(-spread_I[index], kind="stable")]
        cut[task] = np.sort(best[: max(1, int(share * len(index)))])
    return cut


def _scores(scores_RI: npt.NDArray[np.float32], pack: Packer) -> dict[str, Any]:
    """Return scores as bits where all are right or wrong, else as bytes of the largest score."""
    known = scores_RI[~np.isnan(scores_RI)]
    if len(known) == scores_RI.size and np.isin(known, (0, RIGHT)).all():
        return {"bits": pack.array(np.packbits(scores_RI > 0, axis=1), "u8")}
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    span = (high - low) or 1.0
    scaled = np.where(np.isnan(scores_RI), MISSING, np.rint((scores_RI - low) / span * 254))
    return {"bytes": pack.array(scaled, "u8"), "low": low, "high": high}


@dataclass
class _Answers:
    gold: dict[tuple[str, int], str] = field(default_factory=dict)
    given: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    runs: list[int] = field(default_factory=list)

    def flat(self, task: str) -> list[int]:
        """Return (row of the scores, item, text) of every answer of a task, one after another."""
        return [number for one in self.given.get(task, ()) for number in one]


def _answers(
    items: Items,
    kept: Mapping[str, npt.NDArray[np.intp]],
    run_R: npt.NDArray[Any],
    names: Names,
    folder: Path,
    texts: _Texts,
) -> _Answers:
    """Return what was answered, run by run as far as there is room, and the right answers."""
    found = _Answers()
    files = [folder / "cells" / str(key) / FILE for key in items.runs["run"]]
    docs = {t: items.items["doc_id"].to_numpy()[index] for t, index in kept.items()}
    kind_R = _kinds(names)[run_R]
    tables = {t: _Scored.of(items.scores_RI[:, index], kind_R) for t, index in kept.items()}
    for task, (numbers, golds) in _read(files[0], kept, "gold").items():
        found.gold |= {(task, int(d)): gold for d, gold in zip(numbers, golds, strict=True)}
    read: dict[int, Answers] = {}
    done: set[tuple[int, str, int]] = set()
    for r, other in _pairs(names, run_R):
        if texts.used > TEXT or len(set(read) | {r, other}) > MOST_READ:
            break
        for one in (r, other):
            if one not in read:
                read[one] = _read(files[one], kept, "output")
        for task, scored in tables.items():
            chosen = scored.worst(r, other)
            for one in (r, other):
                numbers, outputs = read[one].get(task, (np.zeros(0), []))
                for i in chosen:
                    at = int(np.searchsorted(numbers, docs[task][i]))
                    known = at < len(numbers) and numbers[at] == docs[task][i]
                    if known and (one, task, i) not in done:
                        done.add((one, task, i))
                        place = texts.place(outputs[at])
                        found.given.setdefault(task, []).append((one, i, place))
    found.runs = list(read)
    return found


@dataclass(frozen=True)
class _Scored:
    """The scores of one task, with their means over runs of a kind and their variance over all."""

    scores_RI: npt.NDArray[np.float32]
    mean_KI: npt.NDArray[np.float32]
    kind_R: npt.NDArray[np.intp]
    spread_I: npt.NDArray[np.float32]

    @classmethod
    def of(cls, scores_RI: npt.NDArray[np.float32], kind_R: npt.NDArray[np.intp]) -> "_Scored":
        kinds, place_R = np.unique(kind_R, return_inverse=True)
        known_RI = ~np.isnan(scores_RI)
        count_KI = np.stack([known_RI[kind_R == k].sum(axis=0) for k in kinds])
        sum_KI = np.stack([np.nansum(scores_RI[kind_R == k], axis=0) for k in kinds])
        nothing_KI = np.full(sum_KI.shape, np.nan, dtype=np.float32)
        mean_KI = np.divide(sum_KI, count_KI, out=nothing_KI, where=count_KI > 0)
        return cls(scores_RI, mean_KI, place_R.ravel(), np.nanvar(scores_RI, axis=0))

    def worst(self, r: int, other: int) -> list[int]:
        """Return the items that a run did worst on beside others of its kind, and the flipped."""
        beside = self.scores_RI[r] - self.mean_KI[self.kind_R[r]]
        apart = np.abs(self.scores_RI[r] - self.scores_RI[other])
        worst = [int(i) for i in np.argsort(beside, kind="stable")[:WORST] if beside[i] < 0]
        order = np.lexsort((-self.spread_I, -apart))[:WORST]
        return [*dict.fromkeys(worst + [int(i) for i in order if apart[i] > 0])]


def _pairs(names: Names, run_R: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Yield every run with the run of the same seed in the cell nearest to its own."""
    codes, seed = _cells(names)
    own_R = codes[run_R]
    seed_R = seed[run_R]
    order = np.argsort(seed_R, kind="stable")  # one run of every cell before the second of any
    for r in order:
        # The fewest factors apart, then the fewest levels, as the page chooses a neighbour.
        keys = (np.abs(own_R - own_R[r]).sum(axis=1), (own_R != own_R[r]).sum(axis=1))
        same = (own_R == own_R[r]).all(axis=1) | (seed_R != seed_R[r])
        other = int(np.lexsort((*keys, same))[0])
        if not same[other]:
            yield int(r), other


def _kinds(names: Names) -> npt.NDArray[np.intp]:
    """Return a number for every run: runs of one data set and base model have the same."""
    first = names.first
    order = np.argsort(names.run[first], kind="stable")
    own = [c.codes[first][order] for c in names.columns if c.factor.part == "stratum"]
    codes = np.column_stack([np.zeros(int(first.sum()), dtype=np.int64), *own])
    return np.unique(codes, axis=0, return_inverse=True)[1].ravel()


def _cells(names: Names) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the levels of every run's first name but the seed, and the seed."""
    first = names.first
    order = np.argsort(names.run[first], kind="stable")
    columns = [c for c in names.columns if c.column != "seed"]
    count = int(first.sum())
    codes = np.column_stack([c.codes[first][order] for c in columns] or [np.zeros(count, int)])
    seeds = [c for c in names.columns if c.column == "seed"]
    return codes, seeds[0].codes[first][order] if seeds else np.zeros(count, int)


def _read(path: Path, tasks: Mapping[str, Any], column: str) -> Answers:
    """Return a column of what a run answered; nothing where it is not kept."""
    try:
        with pq.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                return {}
            table = file.read(["task", "doc_id", column]).to_pandas()
    except (OSError, pa.ArrowInvalid):
        return {}
    table = table[table["task"].isin(list(tasks))].drop_duplicates(["task", "doc_id"])
    table = table.assign(**{column: table[column].astype(object).fillna("").astype(str)})
    return {
        str(task): (own["doc_id"].to_numpy(), own[column].tolist())
        for task, own in table.sort_values("doc_id", kind="stable").groupby(
            "task", observed=True, sort=False
        )
    }
