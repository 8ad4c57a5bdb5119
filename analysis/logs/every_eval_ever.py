"""Files of "Every Eval Ever": one JSON object a run, and a line an item in a file beside it.

Schemas 0.2 and 0.3 of github.com/evaleval/every_eval_ever, of which `ablate store export --format
every_eval_ever` writes the second.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError
from analysis.logs.files import json_lines
from analysis.logs.log import ITEMS, SCORES, Log, flat, seed_in, with_places

SILENT = ("train_key", "configuration")  # what stands in the details, and is no setting


def is_record(found: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is the file of a run."""
    parts = (
        isinstance(found.get("evaluation_results"), list),
        isinstance(found.get("model_info"), Mapping),
    )
    return all(parts)


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
    about = found["model_info"].get("additional_details") or {}
    config = flat({k: v for k, v in found["model_info"].items() if k != "additional_details"})
    config |= flat({k: v for k, v in about.items() if k not in SILENT})
    config |= flat(_settings(about))
    config |= flat({"eval_library": found.get("eval_library") or {}})
    lower = frozenset(
        (_task(one), _metric(one))
        for one in results
        if (one.get("metric_config") or {}).get("lower_is_better")
    )
    return Log(
        name=str(found["model_info"].get("name") or model),
        model=model,
        source=path,
        seed=config.get("seed", "") or seed_in(model, path.parent.name),
        config=config,
        items=_items(path, found, results, cluster),
        scores=scores,
        lower=lower,
    )


def _settings(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration that `ablate` keeps among the details."""
    try:
        found = json.loads(about.get("configuration") or "{}")
    except (ValueError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _task(one: Mapping[str, Any]) -> str:
    return str(one.get("evaluation_name") or "")


def _metric(one: Mapping[str, Any]) -> str:
    about = one.get("metric_config") or {}
    return str(about.get("metric_id") or about.get("metric_name") or "score")


def _score(one: Mapping[str, Any]) -> tuple[Any, ...]:
    details = one.get("score_details") or {}
    sure = details.get("uncertainty") or {}
    error = sure.get("standard_error") or {}
    se = error.get("value") if isinstance(error, Mapping) else error
    task = _task(one)
    return (
        task, task, _metric(one), _number(details.get("score")), _number(se),
        sure.get("num_samples"),
    )  # fmt: skip


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _items(
    path: Path, found: Mapping[str, Any], results: list[Mapping[str, Any]], cluster: str
) -> pd.DataFrame:
    """Return the items of the file that the run's names, or that has its name and `_samples`."""
    about = found.get("detailed_evaluation_results") or {}
    stated = Path(str(about.get("file_path") or "")).name
    places = [path.parent / name for name in (stated, f"{path.stem}_samples.jsonl") if name]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return pd.DataFrame(columns=ITEMS)
    metrics = {one["evaluation_result_id"]: _metric(one) for one in results if _identified(one)}
    by_task = {_task(one): _metric(one) for one in results}
    rows = [_row(file, line, metrics, by_task, cluster) for line in json_lines(file)]
    return with_places(pd.DataFrame(rows, columns=ITEMS))


def _identified(one: Mapping[str, Any]) -> bool:
    return bool(one.get("evaluation_result_id"))


def _row(
    file: Path,
    line: Mapping[str, Any],
    metrics: Mapping[str, str],
    by_task: Mapping[str, str],
    cluster: str,
) -> tuple[Any, ...]:
    own = line.get("evaluation")
    if not isinstance(own, Mapping) or "score" not in own:
        raise AnalysisError(f"{file}: an item has no evaluation.score, as the schema asks for")
    task = _task(line)
    metric = metrics.get(str(line.get("evaluation_result_id")), by_task.get(task, "score"))
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
