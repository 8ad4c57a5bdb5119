"""Records as "Every Eval Ever" has them: one JSON file a run, and one of its items.

The schemas are `eval.schema.json` and `instance_level_eval.schema.json`, version 0.3.0, of
github.com/evaleval/every_eval_ever. Benchmarks and held-out losses are written; measures, which
have no better direction, are not. A record keeps the hash of a prompt, not its text, so that is
what stands for an item's input.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ablate.results.exports import read_items, records
from ablate.results.record import items_text
from ablate.results.store import Store

Record = Mapping[str, Any]
VERSION = "0.3.0"
NAME = "ablate"  # of the collection, the first folder below data/
RANGES: dict[str, tuple[float, float | str]] = {
    "fraction": (0.0, 1.0),
    "points": (0.0, 100.0),
    "nats": (0.0, "Infinity"),
    "bits": (0.0, "Infinity"),
    "perplexity": (1.0, "Infinity"),
}
RIGHT = 1.0  # an item's score, as a fraction, that is right


def write(store: Store, keys: Sequence[str], to: Path) -> None:
    """Write the records `keys` below `to`/data."""
    for key, record in records(store, keys):
        scores = [s for s in record["scores"] if _is_written(s)]
        if not scores:
            continue
        name = str(_uuid(key))
        about = _about(key, record)
        organisation, _, model = about["model_info"]["id"].partition("/")
        folder = to / "data" / NAME / _folder_name(organisation) / _folder_name(model)
        folder.mkdir(parents=True, exist_ok=True)
        lines = list(_instances(read_items(store, key, record), scores, about))
        if lines:
            about["detailed_evaluation_results"] = _write_lines(lines, folder, to, name)
        about["evaluation_results"] = [_result(score) for score in scores]
        text = json.dumps(about, indent=1, allow_nan=False)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _folder_name(words: str) -> str:
    """Return words of a record as the name of one folder: they may come from anybody."""
    return re.sub(r"[^\w.+@-]", "_", words) if words.strip(".") else "unknown"


def _is_written(score: Mapping[str, Any]) -> bool:
    return score["value"] is not None and score.get("higher_is_better") is not None


def _uuid(key: str) -> uuid.UUID:
    """Return a UUID of version 4's form that is the same for the same run."""
    return uuid.UUID(bytes=hashlib.sha256(key.encode()).digest()[:16], version=4)


def _about(key: str, record: Record) -> dict[str, Any]:
    """Return all of a run's file but its results."""
    made = record["provenance"]
    packages = {k: str(v) for k, v in made.get("packages", {}).items()}
    ended = made.get("finished")
    model = _model(key, record, packages)
    when = f"{ended:.3f}" if ended is not None else "0"
    source = {
        "source_name": NAME,
        "source_type": "evaluation_run",
        "source_organization_name": "unknown",
        "evaluator_relationship": "first_party",
    }
    library = {"name": NAME, "version": packages.get(NAME, "unknown")}
    return {
        "schema_version": VERSION,
        "evaluation_id": f"{NAME}/{model['id']}/{when}",
        **({"evaluation_timestamp": when} if ended is not None else {}),
        "retrieved_timestamp": when,
        "source_metadata": source,
        "eval_library": library | {"additional_details": packages},
        "model_info": model,
    }


def _model(key: str, record: Record, packages: Mapping[str, str]) -> dict[str, Any]:
    config = record["config"]
    base = config["model"]
    on_hub = base["source"] == "hub"
    path = str(base["path"]) if on_hub else Path(str(base["path"])).name or str(base["name"])
    organisation, _, name = path.rpartition("/")
    adapter, rank = config["adapter"]["name"], config["rank"]
    details = {
        "deployment_type": "self_deployed",
        "model_availability": "open_weights" if on_hub else "unknown",
        "base_model": path,
        "train_key": key,
        "configuration": json.dumps(config, sort_keys=True),
    }
    tuned = "" if adapter == "none" else f" tuned by {adapter} at rank {rank}"
    found = {
        "name": f"{name}{tuned}",
        "id": f"{organisation or 'unknown'}/{name}-{key}",
        "inference_engine": {
            "name": "transformers",
            "version": packages.get("transformers", "unknown"),
        },
        "additional_details": details,
    }
    return found | ({"developer": organisation} if organisation else {})


def _result(score: Mapping[str, Any]) -> dict[str, Any]:
    unit = score.get("unit")
    metric: dict[str, Any] = {
        "metric_id": score["metric"],
        "metric_name": score["metric"],
        "lower_is_better": not score["higher_is_better"],
    }
    if unit in RANGES:
        low, high = RANGES[unit]
        metric |= {"score_type": "continuous", "min_score": low, "max_score": high}
    metric |= {"metric_unit": unit} if unit else {}
    uncertainty: dict[str, Any] = {"num_samples": score["n"]}
    if score.get("se") is not None:
        uncertainty["standard_error"] = {"value": score["se"], "method": "analytic"}
    details = {"version": str(score.get("version")), "task_type": str(score.get("task_type"))}
    details |= {"items": items_text(score)} if score["n"] < (score.get("of") or 0) else {}
    return {
        "evaluation_result_id": _result_id(score),
        "evaluation_name": score["task"],
        "source_data": {"dataset_name": score["task"], "source_type": "other"},
        "metric_config": metric,
        "score_details": {
            "score": score["value"], "details": details, "uncertainty": uncertainty,
        },
    }  # fmt: skip


def _result_id(score: Mapping[str, Any]) -> str:
    return f"{score['score_key']}:{score['task']}:{score['metric']}"


def _instances(
    items: pd.DataFrame, scores: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield a line for every item whose answer the record keeps, of scores that are fractions."""
    if "output" not in items:
        return
    told = items[items["score"].notna() & items["output"].notna()]
    by = {(s["score_key"], s["task"], s["metric"]): s for s in scores}
    for row in told.to_dict("records"):
        score = by.get((row["score_key"], row["task"], row["metric"]))
        if score is None or score.get("unit") != "fraction":
            continue
        output = str(row["output"])
        answer = {
            "turn_idx": 0, "source": "output.raw", "extracted_value": output,
            "extraction_method": score["metric"], "is_terminal": True,
        }  # fmt: skip
        gold = [] if pd.isna(row["gold"]) else [str(row["gold"])]
        yield {
            "schema_version": VERSION,
            "evaluation_id": about["evaluation_id"],
            "model_id": about["model_info"]["id"],
            "evaluation_name": row["task"],
            "evaluation_result_id": _result_id(score),
            "sample_id": str(row["doc_id"]),
            "interaction_type": "single_turn",
            "input": {"raw": f"sha256:{row['prompt_hash']}", "reference": gold},
            "output": {"raw": [output]},
            "answer_attribution": [answer],
            "evaluation": {"score": float(row["score"]), "is_correct": row["score"] == RIGHT},
            "metadata": {"input": "the first digits of the prompt's sha256; its text is not kept"},
        }


def _write_lines(
    lines: Sequence[Mapping[str, Any]], folder: Path, to: Path, name: str
) -> dict[str, Any]:
    """Return what the run's file says of the file of its items, newly written."""
    path = folder / f"{name}_samples.jsonl"
    content = "".join(f"{json.dumps(line, allow_nan=False)}\n" for line in lines).encode()
    path.write_bytes(content)
    return {
        "format": "jsonl",
        "file_path": path.relative_to(to).as_posix(),
        "hash_algorithm": "sha256",
        "checksum": hashlib.sha256(content).hexdigest(),
        "total_rows": len(lines),
    }
