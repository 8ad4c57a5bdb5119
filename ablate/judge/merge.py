"""Judgments of another folder of results, taken over: equal ones once, different ones apart.

A reply is known by its question and its judge, whoever was judged, and serves both folders. Answers
to prompts of a file and judgments are of runs: those of a run that is another one here, or is not
here, go to OUT/apart/judgments/, as do a reply or an answer that differs from ours. Of a judgment
that both folders have under one name the rows are put together where the same was asked for.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.judge.carried import ANSWERS, FOLDER, JUDGMENTS, REPLIES, REQUEST, written
from ablate.judge.jsonl import append, rows
from ablate.results import files
from ablate.results.merge import APART, NotTaken, difference
from ablate.results.record import digest, upgraded
from ablate.results.store import Store

NAME = re.compile(r"[\w.+-]{1,80}")  # as `ablate judge` names a judgment
PAIR = ("judge", "mode", "task", "doc_id", "arm", "baseline", "run", "baseline_run")
NUMBERS = {  # of a row, by mode, missing where there was no verdict
    "grade": ("grade", "grade_baseline"),
    "": ("preference", "first_shown", "decided", "length", "length_baseline"),
}
Row = Mapping[str, Any]


def merge(into: Store, source: Store, changed: Callable[[Path], None]) -> Iterator[str]:
    """Take over the judgments of `source`, whose records were merged; yield a line for each kind.

    Args:
        into: the folder of results that takes them.
        source: the other one, which is not changed.
        changed: is told every folder of a judgment whose rows are new, as its table then is.
    """
    theirs = source.out / FOLDER
    if not theirs.is_dir():
        return
    if linked := next((path for path in (theirs, *theirs.rglob("*")) if path.is_symlink()), None):
        yield NotTaken(f"{theirs}: {linked.name} is a link: no judgment is taken")
        return
    same = _Same(into, source)
    yield from _lines(into, theirs / REPLIES, what="replies", value="reply", fits=lambda row: True)
    yield from _lines(into, theirs / ANSWERS, what="answers", value="answer",
                      fits=lambda row: same(row.get("run")))  # fmt: skip
    for folder in sorted(path for path in theirs.iterdir() if path.is_dir()):
        yield from _judgment(into, folder, same, changed)


class _Same:
    """Whether a run is the same in both folders; each is compared once."""

    def __init__(self, into: Store, source: Store) -> None:
        self._into, self._source = into, source
        self._known: dict[str, bool] = {}

    def __call__(self, key: Any) -> bool:
        if key is None:  # as baseline: reference answers
            return True
        if not (isinstance(key, str) and NAME.fullmatch(key)):
            return False  # no key, and perhaps the path of another folder
        if key not in self._known:
            ours, theirs = self._into.record(key), self._source.record(key)
            known = ours is not None and theirs is not None
            self._known[key] = known and not difference(ours or {}, upgraded(theirs or {}))
        return self._known[key]


def _lines(
    into: Store, file: Path, *, what: str, value: str, fits: Callable[[Row], bool]
) -> Iterator[str]:
    """Take over rows with an `id` and a value, such as replies."""
    known = {
        row["id"]: row.get(value) for row in rows(into.out / FOLDER / file.name) if "id" in row
    }
    new: dict[Any, Row] = {}
    apart: list[Row] = []
    for row in rows(file):
        if not isinstance(row.get("id"), str):
            continue
        if row["id"] in known and known[row["id"]] == row.get(value):
            continue
        if row["id"] in known or not fits(row):
            apart.append(row)
        else:
            new[row["id"]] = row  # of one id twice the last counts, as where they are read
    if new:
        append(into.out / FOLDER / file.name, new.values())
        yield f"taken: {len(new):,} {what} of judgments"
    yield from _apart_rows(into, file.name, apart, what)


def _apart_rows(into: Store, name: str, found: Sequence[Row], what: str) -> Iterator[str]:
    place = into.out / APART / FOLDER / name
    known = {digest(row) for row in rows(place)}
    new = {mark: row for row in found if (mark := digest(row)) not in known}
    if new:
        append(place, new.values())
    if found:
        yield f"{len(found):,} {what} of judgments differ or are of other runs: kept in {place}"


def _judgment(
    into: Store, folder: Path, same: _Same, changed: Callable[[Path], None]
) -> Iterator[str]:
    """Take over one judgment: its rows and what was asked for."""
    request, found = _request(folder / REQUEST), list(rows(folder / JUDGMENTS))
    if request is None or not NAME.fullmatch(folder.name) or not all(map(_is_row, found)):
        yield NotTaken(f"{folder}: is damaged: not taken")
        return
    place = into.out / FOLDER / folder.name
    ours = _request(place / REQUEST)
    other = sorted({k for row in found for k in (row["run"], row["baseline_run"]) if not same(k)})
    if other:
        yield _keep_apart(into, folder, found, request, f"has other results of run {other[0]}")
    elif ours is None and not place.exists():
        written(place, found, request)
        changed(place)
        yield f"taken: {FOLDER}/{folder.name}, {len(found):,} judgments"
    elif ours is None or not _asks_the_same(ours, request):
        yield _keep_apart(into, folder, found, request, "was asked for otherwise than ours")
    else:
        known = {_pair(row): row for row in rows(place / JUDGMENTS)}
        differ = [row for row in found if _pair(row) in known and known[_pair(row)] != row]
        new = [row for row in found if _pair(row) not in known]
        if new:
            written(place, [*known.values(), *new], ours)
            changed(place)
            yield f"{FOLDER}/{folder.name}: {len(new):,} further judgments taken"
        if differ:
            yield _keep_apart(
                into, folder, differ, request, f"differs in {len(differ):,} judgments"
            )


def _asks_the_same(ours: Row, theirs: Row) -> bool:
    """Return whether rows of two requests belong together; of prompts of a file by its content."""
    return ours == theirs and (not ours.get("prompts") or bool(ours.get("prompts_sha256")))


def _keep_apart(into: Store, folder: Path, found: Sequence[Row], request: Row, why: str) -> str:
    """Write a judgment under `apart/`, once however often it is merged, and say so."""
    apart = into.out / APART / FOLDER
    content = digest({"rows": list(found), "request": request})
    for known in sorted(apart.glob(f"{folder.name}*")) if apart.is_dir() else ():
        theirs = {"rows": list(rows(known / JUDGMENTS)), "request": _request(known / REQUEST)}
        if digest(theirs) == content:
            return f"{folder}: {why}: it is kept in {known}"
    place = files.free_name(apart, folder.name)
    written(place, found, request)
    return f"{folder}: {why}: it is kept in {place}"


def _pair(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in PAIR)


def _is_row(row: Row) -> bool:
    """Return whether a row has what `ablate judge` writes of a pair and its table is made of."""
    numbers = NUMBERS.get(str(row.get("mode")), NUMBERS[""])
    named = row.keys() >= {*PAIR, *numbers, "seed", "item"}
    plain = all(isinstance(row.get(n), str | int | None) for n in (*PAIR, "seed", "item"))
    return named and plain and all(isinstance(row[n], int | float | None) for n in numbers)


def _request(file: Path) -> dict[str, Any] | None:
    """Return what was asked for; None where that is not there or damaged."""
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
