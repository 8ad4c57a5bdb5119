"""What is wrong with a benchmark, from what lm-eval raised when it loaded or built it.

lm-eval does not check task files; it fails somewhere within. Where it failed says which setting of
the file it was at, and only data that comes from the hub has to do with the hub.
"""

import traceback
from collections.abc import Mapping
from types import FrameType
from typing import Any

from lm_eval.api.registry import METRIC_REGISTRY

from ablate import hub
from ablate.errors import UserError, unknown

LIBRARIES = ("datasets", "huggingface_hub", "evaluate", "requests", "urllib3", "httpx")  # that ask
LOCAL = ("json", "csv", "text", "parquet", "arrow", "pandas")  # `dataset_path` of files
SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
ASKED = ("doc_to_text", "doc_to_target", "doc_to_choice", "process_docs", "process_results")


def told(name: str, error: Exception) -> UserError:
    """Return the error of the benchmark that `evaluate.tasks` calls `name`."""
    setting = f"evaluate.tasks={name}"
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    within = [f for f in frames if f.f_code.co_filename.endswith("lm_eval/api/task.py")]
    config = next((f.f_locals["self"].config for f in within if "self" in f.f_locals), None)
    if isinstance(error, KeyError) and (names := _no_metrics(config)):
        return unknown(f"{setting}: metric_list", names[0], METRIC_REGISTRY)
    if isinstance(error, KeyError) and (split := _split(config, *error.args)):
        return UserError(f"{setting}: its {split} is {error}, which its data does not have")
    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    at = next((f.f_code.co_name for f in within if f.f_code.co_name in ASKED), None)
    what = _choices(within[-1]) if within else ""
    if at or what:
        return UserError(f"{setting}: {what or f'its {at} fails ({reason})'}")
    asked = any(f.f_globals.get("__name__", "").split(".")[0] in LIBRARIES for f in frames)
    fault = hub.unreachable() if asked and getattr(config, "dataset_path", "") not in LOCAL else ""
    away = f"; the hub cannot be reached ({fault})" if fault else ""
    return UserError(f"{setting}: cannot be loaded ({reason}){away}")


def _no_metrics(config: Any) -> list[str]:
    """Return the metrics of a task that lm-eval does not know."""
    listed = getattr(config, "metric_list", None) or []
    names = [entry.get("metric") for entry in listed if isinstance(entry, Mapping)]
    return [name for name in names if isinstance(name, str) and name not in METRIC_REGISTRY]


def _split(config: Any, missing: object) -> str:
    """Return which setting of a task names the missing split; empty where none does."""
    return next((name for name in SPLITS if missing == getattr(config, name, "")), "")


def _choices(frame: FrameType) -> str:
    """Return what is wrong with an item's choices, if that is what lm-eval was looking at."""
    found = frame.f_locals
    choices, target = found.get("test_choice"), found.get("test_target")
    if not isinstance(choices, list):
        return ""
    if isinstance(target, int) and not -len(choices) <= target < len(choices):
        return f"its doc_to_target is {target} in the first item, which has {len(choices)} choices"
    return "its doc_to_choice has an empty text in the first item" if "" in choices else ""
