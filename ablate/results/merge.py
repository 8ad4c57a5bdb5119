"""What another folder of results has, taken over: equal records once, different ones apart."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ablate.results import files, repairs, seal
from ablate.results.items import SCORE_KEY, with_score_keys
from ablate.results.record import RECORD, text, upgraded
from ablate.results.store import Store

ITEMS = "items.parquet"
WEIGHTS = "weights"
COURSE = ("final_train_loss", "grad_norm_mean", "clipped_share")  # costs that are no times
APART = "apart"  # folder of records that differ from ours of the same run


class NotTaken(str):
    """A line about a record that was left where it is."""

    __slots__ = ()


def merge(into: Store, source: Store) -> Iterator[str]:
    """Take over what `source` has, which is not changed; yield a line for each record.

    A run that both have is kept once where its training and its common scores are equal, with the
    scores of both, and with their weights where ours has none. Where they differ ours stays, and
    theirs is copied to `apart/`. A line is a
    `NotTaken` where a record is damaged, leads out of its folder or is being trained here.
    """
    for key in source.present():
        folder = source.folder(key)
        found, fault = seal.read(folder, key, every_byte=True)
        if found is None:
            yield NotTaken(f"{folder}: is damaged ({fault}): not taken")
            continue
        if links := [path for path in folder.rglob("*") if path.is_symlink()]:
            # what it leads to may be any file of this machine, and would be shared as a result
            yield NotTaken(f"{folder}: {links[0].relative_to(folder)} is a link: not taken")
            continue
        yield from _take(into, key, folder, upgraded(found))


def _take(into: Store, key: str, folder: Path, theirs: Mapping[str, Any]) -> Iterator[str]:
    ours = into.record(key)
    if ours is None:
        yield from repairs.set_damaged_aside(into, [key])
        with into.claim(key) as mine:
            if mine:
                into.take(key, folder)
        yield f"taken: {key}" if mine else NotTaken(f"{key}: is being trained here: not taken")
        return
    differs = difference(ours, theirs)
    if differs:
        place = _keep_apart(into, key, folder)
        yield f"{key}: {folder} differs in {differs}: it is kept in {place}"
        return
    if _further(ours, theirs) or _lacks_weights(into, key, folder):
        # A sweep may add scores of its own meanwhile: what it wrote last would be lost.
        with into.claim(key) as mine:
            ours = into.record(key) if mine else None
            if ours is None:
                yield NotTaken(f"{key}: is being scored here: what it lacks is not taken")
                return
            further, weights = _further(ours, theirs), _lacks_weights(into, key, folder)
            _add(into, key, folder, {"ours": ours, "theirs": theirs}, further)
        told = [f"{len(further)} further scores"] * bool(further) + ["weights"] * weights
        yield f"{key}: {' and '.join(told)} taken"


def _lacks_weights(into: Store, key: str, folder: Path) -> bool:
    """Return whether weights were kept there and not here, of training that was the same."""
    return (folder / WEIGHTS).is_dir() and not (into.folder(key) / WEIGHTS).exists()


def _further(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the keys of the scores that theirs has and ours lacks, those that failed here too."""
    here = {s["score_key"] for s in ours["scores"]}
    return sorted({s["score_key"] for s in theirs["scores"]} - here)


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Return in what two records of one run differ beside times and machines; empty if nothing."""
    if ours["parameters"].get("trainable") != theirs["parameters"].get("trainable"):
        return "the trained parameters"
    for name in COURSE:
        if ours["costs"].get(name) != theirs["costs"].get(name):
            return f"{name} ({ours['costs'].get(name)} here, {theirs['costs'].get(name)} there)"
    known = {(s["score_key"], s["task"], s["metric"]): s for s in ours["scores"]}
    for score in theirs["scores"]:
        own = known.get((score["score_key"], score["task"], score["metric"]))
        if own is not None and own["value"] != score["value"]:
            return (
                f"{score['task']} {score['metric']} ({own['value']} here, {score['value']} there)"
            )
    return ""


def _keep_apart(into: Store, key: str, folder: Path) -> Path:
    """Return where a copy of `folder` is kept: it is copied once, however often it is merged."""
    apart = into.out / APART
    apart.mkdir(exist_ok=True)
    content = (folder / RECORD).read_bytes()
    for known in apart.glob(f"{key}*"):
        if (known / RECORD).read_bytes() == content:
            return known
    place = files.free_name(apart, key)
    files.copy(folder, place)
    return place


def _add(
    into: Store, key: str, folder: Path, records: Mapping[str, Any], further: list[str]
) -> None:
    """Add the scores `further` of the record in `folder` to ours with their items, and weights."""
    ours, theirs = records["ours"], records["theirs"]
    scores = [s for s in theirs["scores"] if s["score_key"] in further]
    with into.amending(key) as draft:
        if _lacks_weights(into, key, folder):
            files.copy(folder / WEIGHTS, draft / WEIGHTS)
        if not further:
            return
        own = with_score_keys(pd.read_parquet(draft / ITEMS), ours["scores"])
        new = with_score_keys(pd.read_parquet(folder / ITEMS), theirs["scores"])
        table = pd.concat([own, new[new[SCORE_KEY].isin(further)]])
        files.write(draft / ITEMS, table.to_parquet(index=False, compression="zstd"))
        changed = ours | {
            "scores": [*ours["scores"], *scores],
            "score_keys": sorted({*ours["score_keys"], *further}),
            "unscored": [u for u in ours.get("unscored", ()) if u["score_key"] not in further],
        }
        files.write(draft / RECORD, text(changed))
