"""Files of "Every Eval Ever": one JSON object a run, and a line an item in a file beside it.

Schemas 0.1 to 0.3 of github.com/evaleval/every_eval_ever, of which `ablate store export --format
every_eval_ever` writes the second.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError, listed
from analysis.logs.files import json_lines, json_object
from analysis.logs.log import ITEMS, SCORES, Log, flat, seed_in, with_places

SILENT = ("train_key", "configuration")  # what stands in the details, and is no setting
PERCENT = (0.0, 100.0)  # the bounds of a score that is written in percent
RANDOM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.json", re.I)
WORD = re.compile(r"[\w@.-]{1,40}")  # a description that is a metric's name


def is_record(found: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is the file of a run."""
    parts = (
        isinstance(found.get("evaluation_results"), list),
        isinstance(found.get("model_info"), Mapping),
    )
    return all(parts)


def when(path: Path) -> float:
    """Return when a run was evaluated, else when that was written down, in seconds; 0 unknown.

    The names of these files are UUIDs and say nothing; no other file is opened for it.
    """
    found = json_object(path) if RANDOM.fullmatch(path.name) else None
    if found is None or not is_record(found):
        return 0.0
    for name in ("evaluation_timestamp", "retrieved_timestamp"):
        try:
            return float(found.get(name) or "")
        except (TypeError, ValueError):
            continue
    return 0.0


def read_record(path: Path, found: Mapping[str, Any], cluster: str) -> Log:
    """Return what the file of a run and that of its items say.

    Args:
        path: of the run's file.
        found: its content.
        cluster: the field of the items' metadata that says which belong together; "" for none.

    Raises:
        AnalysisError: the items' file is not what it must be.
    """
    model = str(found["model_info"].get("id") or path.parent.name)
    results = [one for one in found["evaluation_results"] if isinstance(one, Mapping)]
    scores = pd.DataFrame([_score(one) for one in results], columns=SCORES)
    about = _part(found["model_info"], "additional_details")
    config = flat({k: v for k, v in found["model_info"].items() if k != "additional_details"})
    config |= flat({k: v for k, v in about.items() if k not in SILENT})
    config |= flat(_settings(about)) | _generation(results)
    config |= flat({"eval_library": found.get("eval_library") or {}})
    lower = frozenset(
        (_task(one), _metric(one))
        for one in results
        if _part(one, "metric_config").get("lower_is_better")
    )
    items, notes = _items(path, found, results, cluster)
    seed = next((v for k, v in config.items() if k.split(".")[-1] == "seed"), "")
    return Log(
        name=str(found["model_info"].get("name") or model),
        model=model,
        source=path,
        seed=seed or seed_in(model, path.parent.name),
        config=config,
        items=items,
        scores=scores.drop_duplicates(["task", "metric"]),
        lower=lower,
        notes=(*notes, *_repeated(path, scores)),
    )


def _part(one: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an object within another; an empty one where there is none, or something else."""
    found = one.get(name)
    return found if isinstance(found, Mapping) else {}


def _repeated(path: Path, scores: pd.DataFrame) -> Iterator[str]:
    """Yield that a file has several scores of one benchmark and metric."""
    again = scores[scores.duplicated(["task", "metric"])]
    if len(again):
        yield (
            f"{path.name}: {listed(again['task'].unique(), limit=3)} has several scores of one "
            f"metric; the first counts."
        )


def _settings(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration that `ablate` keeps among the details."""
    try:
        found = json.loads(about.get("configuration") or "{}")
    except (ValueError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _generation(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return how answers were generated: a setting of all results, else under each one's name."""
    found: dict[str, str] = {}
    own = []
    for one in results:
        about = _part(one, "generation_config")
        args, more = _part(about, "generation_args"), _part(about, "additional_details")
        rest = {
            k: v for k, v in about.items() if k not in ("generation_args", "additional_details")
        }
        own.append(flat({**rest, **args, **more}))
    for name in dict.fromkeys(name for each in own for name in each):
        values = {each[name] for each in own if name in each}
        if len(values) == 1:
            found[f"generation.{name}"] = values.pop()
        else:
            found |= {
                f"{_task(one)}.generation.{name}": each[name]
                for one, each in zip(results, own, strict=True)
                if name in each
            }
    return found


def _task(one: Mapping[str, Any]) -> str:
    """Return the name of an evaluation, behind that of its data where it does not have that.

    Converters of Inspect write the scorer's name, "choice", for every benchmark.
    """
    name = str(one.get("evaluation_name") or "")
    data = str(_part(one, "source_data").get("dataset_name") or "")
    plain = [re.sub(r"[^a-z0-9]", "", words.lower()) for words in (name, data)]
    return name if plain[1] in plain[0] else f"{data} {name}".strip()


def _metric(one: Mapping[str, Any]) -> str:
    about = _part(one, "metric_config")
    described = str(about.get("evaluation_description") or "")
    return str(
        about.get("metric_id")
        or about.get("metric_name")
        or (described if WORD.fullmatch(described) else "score")
    )


def _score(one: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a row of `SCORES`; what is in percent, by its stated bounds, as a fraction."""
    details = _part(one, "score_details")
    sure = _part(details, "uncertainty")
    about = _part(one, "metric_config")
    scale = 0.01 if (about.get("min_score"), about.get("max_score")) == PERCENT else 1.0
    task = _task(one)
    return (
        task, task, _metric(one), scale * _number(details.get("score")),
        scale * _standard_error(details, sure), sure.get("num_samples"),
    )  # fmt: skip


def _standard_error(details: Mapping[str, Any], sure: Mapping[str, Any]) -> float:
    """Return the standard error that is stated, or that an interval or a deviation implies."""
    error = sure.get("standard_error")
    se = _number(error.get("value") if isinstance(error, Mapping) else error)
    # schema 0.2.0 has the interval beside the score
    ends = _part(sure, "confidence_interval") or _part(details, "confidence_interval")
    low, high = _number(ends.get("lower")), _number(ends.get("upper"))
    level = _number(ends.get("confidence_level", 0.95))
    if math.isnan(se) and high > low and 0 < level < 1:
        se = (high - low) / (2 * NormalDist().inv_cdf((1 + level) / 2))
    if math.isnan(se) and _number(sure.get("num_samples")) > 0:
        se = _number(sure.get("standard_deviation")) / math.sqrt(_number(sure["num_samples"]))
    return se


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _items(
    path: Path, found: Mapping[str, Any], results: list[Mapping[str, Any]], cluster: str
) -> tuple[pd.DataFrame, list[str]]:
    """Return the items of the file that the run's names, or that has its name and `_samples`."""
    about = _part(found, "detailed_evaluation_results")
    stated = str(about.get("file_path") or "")
    file = next((place for place in _places(path, stated) if place.is_file()), None)
    if file is None:
        said = [f"{path.name}: its file of items, {stated}, is not there."] if stated else []
        return pd.DataFrame(columns=ITEMS), said
    known = {str(r["evaluation_result_id"]): r for r in results if r.get("evaluation_result_id")}
    by_name = {str(r.get("evaluation_name") or ""): r for r in results}
    alone = results[0] if len(results) == 1 else {}
    rows = []
    for line in json_lines(file):
        name = str(line.get("evaluation_name") or "")
        # Some converters name the data in a line and the scorer in the run's file.
        result = known.get(str(line.get("evaluation_result_id"))) or by_name.get(name) or alone
        rows.append(_row(file, line, result, cluster))
    every = pd.DataFrame(rows, columns=ITEMS)
    # An item that was answered several times (epochs) has the mean, as a log of Inspect has it.
    names = [n for n in ITEMS if n != "score"]
    items = every.groupby(names, sort=False, dropna=False)["score"].mean().reset_index()
    return with_places(items[ITEMS]), []


def _places(path: Path, stated: str) -> list[Path]:
    """Return where a run's file of items may lie: beside it, or below a folder that it is in."""
    parts = Path(stated).parts
    below = [] if not parts or ".." in parts or Path(stated).is_absolute() else path.parents[1:]
    names = [Path(stated).name, f"{path.stem}_samples.jsonl"]
    return [path.parent / name for name in names if name] + [p / stated for p in below]


def _row(
    file: Path, line: Mapping[str, Any], result: Mapping[str, Any], cluster: str
) -> tuple[Any, ...]:
    own = line.get("evaluation")
    if not isinstance(own, Mapping) or "score" not in own:
        raise AnalysisError(f"{file}: an item has no evaluation.score, as the schema asks for")
    task = _task(result) if result else str(line.get("evaluation_name") or "")
    metric = _metric(result) if result else "score"
    asked = line.get("metadata")
    group = str(asked.get(cluster, "")) if cluster and isinstance(asked, Mapping) else ""
    number = str(line.get("sample_id", ""))
    item = str(line.get("sample_hash") or _asked(line) or number)
    return task, task, metric, number, item, group, _number(own["score"])


def _asked(line: Mapping[str, Any]) -> str:
    """Return what stands for an item without a hash: its input and its right answers."""
    found = line.get("input")
    if not isinstance(found, Mapping) or not found.get("raw"):
        return ""
    return json.dumps([found["raw"], found.get("reference")], sort_keys=True)
