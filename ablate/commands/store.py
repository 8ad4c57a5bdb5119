"""`ablate store`: checks, repairs, merges and exports a folder of results."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from ablate.commands.verb import Flag, Verb
from ablate.errors import UserError, unknown
from ablate.paths import check_results
from ablate.terminal import CONSOLE

TASKS = ("check", "repair", "merge", "export")
FORMATS = ("parquet", "csv", "datasets", "every_eval_ever")


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    if not rest:
        raise UserError(f"store: say what to do: one of {', '.join(TASKS)}")
    task, folders = rest[0], [Path(word.removeprefix("out=")) for word in rest[1:]]
    if task not in TASKS:
        raise unknown("store", task, TASKS)
    if not folders or (task == "merge") != (len(folders) > 1):
        takes = "the folder to merge into and those to take" if task == "merge" else "one folder"
        raise UserError(f"store {task}: takes {takes}")
    for option in ("to", "format"):
        if getattr(given, option) is not None and task != "export":
            raise UserError(f"--{option}: belongs to ablate store export")
    if task == "export" and given.to is None:
        raise UserError("store export: needs a folder to write: --to DIR")
    for folder in folders[task == "merge" :]:  # what is merged into may be new
        check_results(folder)
    return {"check": _check, "repair": _repair, "merge": _merge, "export": _export}[task](
        folders, given
    )


def _check(folders: list[Path], _: argparse.Namespace) -> int:
    from ablate.experiment.upkeep import check

    found = check(folders[0])
    _print(found or [f"{folders[0]}: all is as it was written"])
    return 1 if found else 0


def _repair(folders: list[Path], _: argparse.Namespace) -> int:
    from ablate.experiment.upkeep import repair

    done = list(repair(folders[0]))
    _print(done or [f"{folders[0]}: nothing to repair"])
    return 0


def _merge(folders: list[Path], _: argparse.Namespace) -> int:
    from ablate.experiment.upkeep import merge
    from ablate.results.merge import NotTaken

    done = list(merge(folders[0], folders[1:]))
    done += [line for source in folders[1:] for line in _judgments(folders[0], source)]
    _print(done or [f"{folders[0]}: has all of it already"])
    return 1 if any(isinstance(line, NotTaken) for line in done) else 0


def _judgments(out: Path, source: Path) -> Iterator[str]:
    """Take over the judgments of `source` and tabulate those that are new; yield lines."""
    from ablate.commands.judge import tabulated
    from ablate.judge.carried import JUDGMENTS
    from ablate.judge.jsonl import rows
    from ablate.judge.merge import merge
    from ablate.results.store import Store

    def changed(folder: Path) -> None:
        found = list(rows(folder / JUDGMENTS))
        for mode in {str(row["mode"]) for row in found}:
            list(tabulated(folder, found, mode))

    yield from merge(Store(out), Store(source), changed)


def _export(folders: list[Path], given: argparse.Namespace) -> int:
    from ablate.experiment.upkeep import check, export

    left_out = check(folders[0])  # every byte: what is handed on should be as it was written
    count = export(folders[0], Path(given.to), given.format or FORMATS[0])
    _print(left_out)
    CONSOLE.print(f"written: {count} records to {given.to}", soft_wrap=True)
    return 1 if left_out else 0


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        CONSOLE.print(line, soft_wrap=True, markup=False, highlight=False)


VERB = Verb(
    name="store",
    summary="check, repair, merge or export a folder of results",
    about=(
        "check reads every byte of a folder of results and names what is damaged; repair moves "
        "that to damaged/, for the next sweep to train again; merge takes what other folders have, "
        "judgments and weights too; "
        "export writes it for other programs. Exit status 1 where check or export found damage "
        "and where merge left a record out."
    ),
    words="check|repair|merge|export DIR [DIR ...]",
    options=(
        Flag("--to", "of export: the folder to write, new or empty", "DIR"),
        Flag("--format", f"of export: {', '.join(FORMATS)} (default: {FORMATS[0]})", "FORMAT",
             str, FORMATS),
    ),
    examples=(
        "ablate store check results/mine",
        "ablate store merge results/both results/mine results/yours",
        "ablate store export results/mine --format every_eval_ever --to eee",
    ),
    run=_run,
)  # fmt: skip
