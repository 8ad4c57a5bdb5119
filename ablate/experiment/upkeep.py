"""The care of a folder of results: check, repair, merge and export it."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ablate.errors import UserError
from ablate.experiment.design import collect, damaged_designs, names, whole_designs
from ablate.results import every_eval_ever, exports, failures, files, repairs
from ablate.results.merge import NotTaken
from ablate.results.merge import merge as merge_records
from ablate.results.store import Store


def check(out: Path) -> list[str]:
    """Return a line for all that is damaged under `out`; every byte of every record is read."""
    store = folder_of_results(out)
    found = ((key, store.fault(key, every_byte=True)) for key in store.present())
    return [
        *(f"cells/{key} is damaged: {fault}" for key, fault in found if fault),
        *damaged_designs(out),
        *(f"failures/{path.name} is damaged" for path in failures.damaged(store.failed)),
        *(f"kept/{p.name} could not have its place in cells/" for p in repairs.kept_results(store)),
    ]


def repair(out: Path) -> Iterator[str]:
    """Move what is damaged to `out`/damaged and seal older records; yield a line for each.

    No result is made here: a sweep trains again what is missing then.
    """
    store = folder_of_results(out)
    store.prepare()
    yield from repairs.take_kept(store)
    yield from repairs.set_damaged_aside(store, store.present(), every_byte=True)
    broken = [out / "designs" / line.split()[0].split("/")[1] for line in damaged_designs(out)]
    for path in (*broken, *failures.damaged(store.failed)):
        place = files.set_aside(path, store.damaged)
        yield f"damaged: {path.relative_to(out)} was moved to damaged/{place.name}"
    older = [key for key in store.present() if repairs.migrate(store, key)]
    if older:
        yield f"{len(older)} records of an older schema have a seal now"
    if names(out):
        collect(out)


def merge(out: Path, sources: Sequence[Path]) -> Iterator[str]:
    """Take what `sources` have into `out`, which may be new; yield a line for each record."""
    stores = [folder_of_results(source) for source in sources]
    if out.resolve() in (source.resolve() for source in sources):
        raise UserError(f"store merge: {out} cannot be merged into itself")
    store = Store(out)
    store.prepare()
    for source in stores:
        yield from merge_records(store, source)
        yield from _merge_designs(out, source.out)
        yield from _beside(out, source.out)
    if names(out):
        collect(out)


def _merge_designs(out: Path, source: Path) -> Iterator[str]:
    """Copy the names of their grids, with their times, by which names are ordered.

    Of a grid that both have ours stays, unless it is damaged.
    """
    folder = out / "designs"
    folder.mkdir(exist_ok=True)
    ours, theirs = whole_designs(out), whole_designs(source)
    for path in sorted(theirs):
        if (place := folder / path.name) not in ours:
            if os.path.lexists(place):
                files.set_aside(place, Store(out).damaged)
            files.copy(path, place)
            yield f"taken: the names of a grid, designs/{path.name}"
    for path in sorted(set((source / "designs").glob("*.json")) - theirs):
        yield NotTaken(f"{path}: is damaged: not taken")


def _beside(out: Path, source: Path) -> Iterator[str]:
    """Take the table of tuned rates where ours has none; say what is not taken, and what to do.

    A ledger of decisions holds one campaign's error rate, which two of them together exceed.
    """
    for name, instead in (
        ("tuned.csv", "rates={} takes its rates"),
        (
            "decisions.jsonl",
            "a ledger is of one campaign and folder: go on with it by out={.parent}",
        ),
    ):
        ours, theirs = out / name, source / name
        if not theirs.is_file() or (ours.is_file() and ours.read_bytes() == theirs.read_bytes()):
            continue
        if name == "tuned.csv" and not os.path.lexists(ours) and not theirs.is_symlink():
            files.copy(theirs, ours)
            yield f"taken: {name}"
        else:
            yield f"{theirs}: not taken; {instead.format(theirs)}"


def export(out: Path, to: Path, form: str) -> int:
    """Write the whole records under `out` to `to` and return how many there are.

    Args:
        out: a folder of results, which is not changed.
        to: a folder that is new or empty.
        form: parquet, csv, datasets or every_eval_ever.
    """
    store = folder_of_results(out)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to {to}: is there already; choose a folder that is new or empty")
    keys = store.recorded()
    if not keys:
        raise UserError(f"{out}: no record here")
    draft = to.parent / f".{to.name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        if form == "every_eval_ever":
            every_eval_ever.write(store, keys, draft)
        elif form == "csv":
            exports.as_csv(collect(out, draft / exports.SCORES))
        else:
            tables = draft / "data" if form == "datasets" else draft
            tables.mkdir(exist_ok=True)
            collect(out, tables / exports.SCORES)
            exports.parquet(store, keys, tables)
        if form == "datasets":
            exports.describe(len(keys), draft)
        draft.replace(to)
    except OSError as error:
        raise UserError(f"--to {to}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return len(keys)


def folder_of_results(out: Path) -> Store:
    """Return the store under `out`.

    Raises:
        UserError: there is none.
    """
    store = Store(out)
    if not store.cells.is_dir():
        raise UserError(f"{out}: no folder of results; one has a folder cells/")
    return store
