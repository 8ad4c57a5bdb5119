"""Reads whatever holds scores: cells and folders of `ablate`, and what other programs wrote."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis.errors import AnalysisError
from analysis.logs import every_eval_ever, inspect_ai, lm_eval, own, trackers
from analysis.logs.copies import counted_once
from analysis.logs.files import damage, json_object
from analysis.logs.log import Log, combined, seed_in
from analysis.logs.places import KINDS, is_cell, is_folder, places

MOST_FILES = 20_000


def read_side(words: str, *, cluster: str = "", metrics: Sequence[str] = ()) -> list[Log]:
    """Return the runs that one side of a comparison names.

    Args:
        words: a path, a pattern of paths, or several with commas between them.
        cluster: the field of documents that says which items belong together; "" for none.
        metrics: the columns of scores in a table of runs.

    Raises:
        AnalysisError: there is nothing, or nothing that can be read.
    """
    found = [(place, read_logs(place, cluster=cluster, metrics=metrics)) for place in places(words)]
    if len(found) == 1:
        return counted_once(found[0][1], of_model=True)
    several = [place for place, logs in found if len(logs) > 1]
    if several:
        raise AnalysisError(
            f"{several[0]}: holds several runs; among several paths each is one run"
        )
    return counted_once([_named(logs[0], place) for place, logs in found], of_model=False)


def _named(log: Log, place: Path) -> Log:
    """Return one of several runs under the name of its path, and with the seed that it states."""
    seed = seed_in(place.name, place) or log.seed
    return replace(log, name=place.name, seed=seed)


def read_logs(path: Path, *, cluster: str = "", metrics: Sequence[str] = ()) -> list[Log]:
    """Return the runs in a file or folder.

    Args:
        path: of it.
        cluster: as of `read_side`.
        metrics: as of `read_side`.

    Raises:
        AnalysisError: it holds nothing that is known here, or something damaged.
    """
    if path.is_dir():
        if is_cell(path):
            return [own.read_cell(path)]
        if is_folder(path):
            return own.read_folder(path)
        if trackers.is_source(path):
            return trackers.logs(trackers.runs(path), path, metrics)
        return _of_folder(path, cluster)
    if path.suffix == ".eval":
        return [inspect_ai.read_archive(path, cluster)]
    if path.name.endswith(lm_eval.SAMPLES):
        return [lm_eval.of_samples(path, cluster)]
    if path.suffix == ".json":
        log = _of_json(path, cluster)
        if log is not None:
            return [log]
        if said := damage(path):
            raise AnalysisError(f"{path}: {said}")
    elif trackers.is_source(path):
        return trackers.logs(trackers.runs(path), path, metrics)
    raise AnalysisError(f"{path}: holds no scores that are known here; name {KINDS}")


def is_logs(path: Path) -> bool:
    """Return whether a path holds logs of items that other programs wrote."""
    if path.is_dir():
        return not is_folder(path) and not is_cell(path) and any(_files(path))
    return path.name.endswith((".eval", *lm_eval.SAMPLES)) or (
        path.suffix == ".json" and _of_json(path, "") is not None
    )


def _files(path: Path) -> list[Path]:
    """Return the files of a folder that may be logs, in the order of their names."""
    found = []
    for number, file in enumerate(sorted(path.rglob("*"))):
        if number > MOST_FILES:
            raise AnalysisError(f"{path}: has more than {MOST_FILES:,} files; name a folder in it")
        if file.suffix in (".json", ".eval") or lm_eval.is_samples(file):
            found.append(file)
    return found


def _of_folder(path: Path, cluster: str) -> list[Log]:
    """Return the logs of a folder, those of one model and seed as one."""
    files = sorted(_files(path), key=lambda f: (lm_eval.when(f), every_eval_ever.when(f), f.name))
    found = {f: _of_file(f, cluster) for f in files if not lm_eval.is_samples(f)}
    logs = [log for log in found.values() if log is not None]
    if not logs:
        logs = [lm_eval.of_samples(f, cluster) for f in files if lm_eval.is_samples(f)]
    lost = [said for file, log in found.items() if log is None and (said := _lost(file))]
    if not logs and lost:
        raise AnalysisError(f"{path}: {lost[0]}, and there is nothing else to read")
    if not logs:
        raise AnalysisError(f"{path}: holds no scores that are known here; name {KINDS}")
    first, *others = combined(logs)
    notes = (*first.notes, *(f"{said}, and is left out." for said in lost))
    return [replace(first, notes=notes), *others]


def _lost(file: Path) -> str:
    """Return why a file that looks like a log is none; "" where it need not be one."""
    if said := damage(file):
        return f"{file.name} {said}"
    return f"{file.name} holds no results" if file.name.startswith("results_") else ""


def _of_file(path: Path, cluster: str) -> Log | None:
    if path.suffix == ".eval":
        return inspect_ai.read_archive(path, cluster)
    return _of_json(path, cluster)


def _of_json(path: Path, cluster: str) -> Log | None:
    """Return the log in a JSON file; None where it holds something else."""
    found = json_object(path)
    if found is None:
        return None
    if lm_eval.is_results(found):
        return lm_eval.read_results(path, found, cluster)
    if inspect_ai.is_log(found):
        return inspect_ai.read_json(path, found, cluster)
    if every_eval_ever.is_record(found):
        return every_eval_ever.read_record(path, found, cluster)
    return None
