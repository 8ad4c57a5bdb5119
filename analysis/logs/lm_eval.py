"""Results of lm-eval: `results_DATE.json` and, with --log_samples, `samples_TASK_DATE.jsonl`.

Written by `lm_eval.loggers.EvaluationTracker`, below a folder for every model. A line of a file of
samples is a document under one filter, with its metrics under their own names. Items are told by
`doc_hash`, which stays what it is when a task's documents are numbered anew.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.logs.files import json_lines, json_object
from analysis.logs.log import ITEMS, SCORES, Log, flat, seed_in, with_places

DATE = re.compile(r"_(\d{4}-\d\d-\d\dT[\d.-]+?)\.jsonl?(?:\.gz)?$")
SAMPLES = (".jsonl", ".jsonl.gz")
FIXED = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
    "doc_hash", "prompt_hash", "target_hash", "schema",
}  # fmt: skip
# Settings of a run that say nothing of what was compared.
SILENT = (
    "config.batch_sizes", "config.device", "config.use_cache", "config.model_num_parameters",
    "config.bootstrap_iters", "config.batch_size",
)  # fmt: skip
STATED = (
    "config", "versions", "n-shot", "lm_eval_version", "transformers_version", "git_hash",
    "chat_template_sha", "system_instruction_sha", "fewshot_as_multiturn", "max_length",
)  # fmt: skip


def is_results(found: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is a file of results."""
    parts = ("configs", "versions", "n-shot")
    return isinstance(found.get("results"), Mapping) and any(name in found for name in parts)


def read_results(path: Path, found: Mapping[str, Any], cluster: str) -> Log:
    """Return what a file of results and the samples beside it say.

    Args:
        path: of the file of results.
        found: its content.
        cluster: the field of the documents that says which belong together; "" for none.

    Raises:
        AnalysisError: a file of samples is not as lm-eval writes it.
    """
    groups = _groups(found.get("group_subtasks") or {})
    date = DATE.search(path.name)
    files = [f for f in sorted(path.parent.glob("samples_*")) if _belongs(f, date)]
    parts = [read_samples(f, cluster, groups, found) for f in files]
    model = str(found.get("model_name") or path.parent.name)
    stated = {name: found[name] for name in STATED if found.get(name) is not None}
    config = {k: v for k, v in flat(stated).items() if k not in SILENT}
    lower = {
        (str(task), str(metric))
        for task, metrics in (found.get("higher_is_better") or {}).items()
        for metric, higher in (metrics or {}).items()
        if higher is False
    }
    scores = pd.DataFrame(list(_scores(found, groups)), columns=SCORES)
    known = {(t, m) for t, m in zip(scores["task"], scores["metric"], strict=True)}
    low = {(t, m) for t, m in known if (t, m.split(",")[0]) in lower}
    items = pd.concat([p for p in parts if len(p)] or [pd.DataFrame(columns=ITEMS)])
    empty = [f.name for f, own in zip(files, parts, strict=True) if not len(own)]
    return Log(
        name=model,
        model=model,
        source=path,
        seed=seed_in(model, path.parent.name),
        config=config,
        items=items.reset_index(drop=True),
        scores=scores,
        lower=frozenset(low),
        notes=tuple(f"{name}: holds no items." for name in empty),
    )


def is_samples(path: Path) -> bool:
    """Return whether a file has the name of a file of samples."""
    return path.name.startswith("samples_") and path.name.endswith(SAMPLES)


def _belongs(path: Path, date: re.Match[str] | None) -> bool:
    return date is not None and is_samples(path) and when(path) == date[1]


def read_samples(
    path: Path,
    cluster: str,
    groups: Mapping[str, str],
    about: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return the items of a file of samples.

    Args:
        path: of the file.
        cluster: as of `read_results`.
        groups: the highest group of every subtask.
        about: the file of results beside it, whose name for the task is the right one.
    """
    stem = DATE.sub("", path.name).removeprefix("samples_")
    names = {re.sub(r"\W", "_", str(t)): str(t) for t in (about or {}).get("results", {})}
    task = names.get(re.sub(r"\W", "_", stem), stem)
    rows = [row for line in json_lines(path) for row in _of_line(line, task, cluster)]
    items = pd.DataFrame(rows, columns=[c for c in ITEMS if c != "group"])
    items.insert(1, "group", groups.get(task, task))
    return with_places(items)


def _of_line(line: Mapping[str, Any], task: str, cluster: str) -> Iterator[tuple[Any, ...]]:
    """Yield task, metric, doc, item, cluster and score for every metric that is a number."""
    name = line.get("filter") or "none"
    doc = line.get("doc")
    own = str(doc.get(cluster, "")) if cluster and isinstance(doc, Mapping) else ""
    number = str(line.get("doc_id", ""))
    item = str(line.get("doc_hash") or number)
    for metric in line.get("metrics") or [k for k in line if k not in FIXED]:
        value = line.get(metric)
        if isinstance(value, int | float):
            yield task, f"{metric},{name}", number, item, own, float(value)


def _scores(found: Mapping[str, Any], groups: Mapping[str, str]) -> Iterator[tuple[Any, ...]]:
    """Yield the scores of the tasks that are no groups."""
    inner = {g for g, members in (found.get("group_subtasks") or {}).items() if members}
    for task, metrics in found["results"].items():
        if task in inner or not isinstance(metrics, Mapping):
            continue
        samples = (found.get("n-samples") or {}).get(task) or {}
        for name, value in metrics.items():
            metric, _, rest = str(name).partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float) or not rest:
                continue
            se = metrics.get(f"{metric}_stderr,{rest}")
            error = float(se) if isinstance(se, int | float) else float("nan")
            n = samples.get("effective", metrics.get("sample_len"))
            yield task, groups.get(task, task), name, float(value), error, n


def _groups(subtasks: Mapping[str, Any]) -> dict[str, str]:
    """Return the highest group of every subtask."""
    above = {str(m): str(g) for g, members in subtasks.items() for m in members or ()}
    found = {}
    for task in above:
        top, seen = task, {task}
        while top in above and above[top] not in seen:
            top = above[top]
            seen.add(top)
        found[task] = top
    return found


def config_of(path: Path) -> Mapping[str, Any] | None:
    """Return the file of results that a file of samples belongs to; None where it is not there."""
    date = DATE.search(path.name)
    for other in sorted(path.parent.glob(f"*_{date[1]}.json")) if date else []:
        found = json_object(other)
        if found is not None and is_results(found):
            return found
    return None


def of_samples(path: Path, cluster: str) -> Log:
    """Return the log of one file of samples."""
    about = config_of(path) or {}
    groups = _groups(about.get("group_subtasks") or {})
    items = read_samples(path, cluster, groups, about)
    model = str(about.get("model_name") or path.parent.name)
    stated = {name: about[name] for name in STATED if about.get(name) is not None}
    config = {k: v for k, v in flat(stated).items() if k not in SILENT}
    seed = seed_in(model, path.parent.name)
    return Log(model, model, path, seed=seed, config=config, items=items)


def when(path: Path) -> str:
    """Return when a file was written, as its name says."""
    date = DATE.search(path.name)
    return date[1] if date else ""
