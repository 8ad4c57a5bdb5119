"""The schema of a record and of the results table; no torch, so that reports read it quickly.

`record.json` holds one run. `results.parquet` is the long table that the analysis reads: one row
per name of a cell x task x metric. An alias is a further name of a run: its rows carry the run's
scores with `alias` true, and the analysis counts the run once.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# 1: scores without a unit. 2: every score states its unit. 3: a seal, and items state their score.
# Records of all are read.
SCHEMA = 3
SEALED = 3  # the first schema with a seal
RECORD = "record.json"
# The scale w_p = PLW^WP_EXPONENT of arXiv 2401.13586, section 4.3, on which PLW 0.1 is 0.5. The
# paper prints log10 2 as 0.30103; tables are made with log10 2, which differs by under 1e-7 in w_p.
WP_EXPONENT = math.log10(2)

LEVEL_PATHS = {  # column of the table: where its level stands in the configuration
    "masking": "masking.name", "plw": "plw", "completion_weight": "completion_weight",
    "normaliser": "loss.normaliser", "scope": "loss.scope", "token_rule": "loss.token_rule",
    "adapter": "adapter.name",
    "rank": "rank", "init": "init.name", "optimizer": "optimizer.name",
    "placement": "placement.name", "regulariser": "regulariser.name",
    "base_precision": "base_precision", "embeddings": "embeddings", "dataset": "dataset.name",
    "model": "model.name", "train": "train.name", "lr": "train.lr", "seed": "seed",
    "sham": "sham", "shuffle_prompts": "dataset.shuffle_prompts",
}  # fmt: skip
LEVELS = ("study", *LEVEL_PATHS)
SINCE = {"token_rule": "none"}  # levels that older configurations do not state, and what they had
FACTS = (
    "effective_plw", "wp", "rg", "dataset_type", "trainable_parameters", "total_parameters",
    "budget_asked", "budget", "train_rows", "train_key", "alias", "status", "untuned",
    "full_rate",
)  # fmt: skip
SCORES = (
    "score_key", "task", "task_type", "side", "skill", "metric", "value", "unit", "n", "of",
    "chosen", "se", "higher_is_better", "chance", "isolation",
)  # fmt: skip
COSTS = (
    "train_seconds", "eval_seconds", "tokens_seen", "tokens_per_second", "peak_mb",
    "grad_norm_mean", "clipped_share", "completion_grad_share", "supervised_share",
    "final_train_loss", "train_loss_rsd",
)  # fmt: skip
UNTUNED, FULL_RATE = "train.untuned", "train.full_rate"  # facts about the rate, no factors
UNSHOWN = ("evaluate", "execution")  # groups whose fixed settings say nothing about the training
# No factors: sizes for a plan without files, and the content of the table `evaluate.items`.
OF_PLANS = ("dataset.published", "model.shape", "evaluate.chosen")
OF_THE_BASE = ("dataset", "model", "evaluate", "base_precision")  # what an untouched base has
NEEDED = {  # parts that a record of any schema has
    "train_key": str, "config": dict, "parameters": dict, "training": dict, "data": dict,
    "costs": dict, "provenance": dict, "scores": list, "score_keys": list,
}  # fmt: skip
RESULT_COLUMNS: tuple[str, ...] = LEVELS + FACTS + SCORES + COSTS


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return every setting of a plain configuration by its dotted path; a list is one setting."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def levels_of(settings: Mapping[str, Any], study: str) -> dict[str, Any]:
    """Return the levels of a cell's flattened configuration, as the table names them."""
    return {"study": study} | {
        name: settings.get(path, SINCE.get(name)) for name, path in LEVEL_PATHS.items()
    }


def setting_columns(
    cells: Sequence[Mapping[str, Any]], asked: Collection[str] = ()
) -> dict[str, None]:
    """Return the settings that need a column of their own beside the levels, in order.

    A setting that takes several values has one, unless its group's name tells them apart: with
    adapter=lora,mora the options that the two files set differently are no factors. A setting that
    the request gave by its path has one in any case, for its group's name does not show it.

    Args:
        cells: the flattened configuration of every trained cell.
        asked: the dotted paths that the requests gave.
    """
    shown = {*LEVEL_PATHS.values(), UNTUNED, FULL_RATE}
    keys = [k for k in dict.fromkeys(k for cell in cells for k in cell) if k not in shown]
    keys = [k for k in keys if not any(_concerns(path, k) for path in OF_PLANS)]
    names = [p for n, p in LEVEL_PATHS.items() if n not in ("seed", "sham")] + ["evaluate.name"]
    levels = [tuple(_mark(cell.get(name)) for name in names) for cell in cells]
    found: dict[str, None] = {}
    for key in (k for k in keys if not k.endswith(".name")):
        pairs = {(n, _mark(c[key])) for n, c in zip(levels, cells, strict=True) if key in c}
        varies = len({value for _, value in pairs}) > 1
        told = len({name for name, _ in pairs}) == len(pairs)  # by the names of the levels
        if varies:
            wanted = not told or any(_concerns(path, key) for path in asked)
        else:
            wanted = key in asked and key.partition(".")[0] not in UNSHOWN
        if wanted:
            found[key] = None
    return found


def _concerns(path: str, key: str) -> bool:
    """Return whether a path that was given is a setting, holds it, or leads into its list."""
    return path == key or key.startswith(f"{path}.") or path.startswith((f"{key}.", f"{key}["))


def _mark(value: Any) -> Any:
    """Return what tells values apart and can be a member of a set."""
    return repr(value) if isinstance(value, bool | list) else value


def shown_settings(
    settings: Mapping[str, Any], columns: Iterable[str], *, base: bool = False
) -> dict[str, Any]:
    """Return a cell's values in `columns`: null and lists as text, what it does not have left out.

    `base` says that the cell is the untouched base, which has nothing of the training.
    """
    found = {k: settings[k] for k in columns if k in settings}
    if base:
        found = {k: v for k, v in found.items() if k.partition(".")[0] in OF_THE_BASE}
    return {
        k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in found.items()
    }


def text(record: Mapping[str, Any]) -> bytes:
    """Return the content of record.json."""
    return json.dumps(record, indent=1, allow_nan=False).encode()


def draft_text(record: Mapping[str, Any]) -> bytes:
    """Return the content of a record that is not sealed yet: the same, on one line."""
    return json.dumps(record, allow_nan=False).encode()  # several times as fast as with an indent


def digest(body: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON-ready value; the order of its entries does not matter."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def fault_of(record: Any, key: str) -> str:
    """Return what is wrong with the content of a record of the run `key`; empty where nothing is.

    A record of schema 3 is as it was written where its seal says so. An older one has the parts
    of a record, which is all that can be told.
    """
    schema = record.get("schema", 1) if isinstance(record, dict) else None
    if not isinstance(schema, int) or schema < 1:
        return f"{RECORD} is no record"
    if schema > SCHEMA:
        return f"{RECORD} is of a later version (schema {schema}; this one reads 1 to {SCHEMA})"
    wrong = [name for name, kind in NEEDED.items() if not isinstance(record.get(name), kind)]
    if wrong:
        return f"{RECORD} is no record: no {wrong[0]}"
    if record["train_key"] != key:
        return f"{RECORD} is that of run {record['train_key']}"
    if not all(isinstance(s, dict) and "score_key" in s for s in record["scores"]):
        return f"{RECORD} is no record: scores without a key"
    return _fault_of_seal(record) if schema >= SEALED else ""


def _fault_of_seal(record: dict[str, Any]) -> str:
    seal = record.get("seal")
    if not isinstance(seal, dict) or not isinstance(seal.get("files"), dict):
        return f"{RECORD} has no seal"
    if outside := next((name for name in seal["files"] if not _is_inside(name)), None):
        return f"{RECORD} is no record: {outside} is not below it"
    body = {k: v for k, v in record.items() if k != "seal"}
    same = digest(body | {"files": seal["files"]}) == seal.get("sha256")
    return "" if same else f"{RECORD} has been changed"


def _is_inside(name: str) -> bool:
    """Return whether a name is that of a file below a folder, wherever the folder is."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def upgraded(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a record says in today's schema; what an older one does not say is None."""
    if record.get("schema", 1) < 2:
        scores = [{"asked": s.get("unit")} | s | {"unit": None} for s in record.get("scores", ())]
        record = record | {"schema": 2, "scores": scores}
    return {k: v for k, v in record.items() if k != "seal"} | {"schema": SCHEMA}


def items_text(score: Mapping[str, Any]) -> str:
    """Return how many items a score is of, and which: "500", "the first 500 of 10,042"."""
    n, of = score["n"], score.get("of")
    if of is None or n >= of:
        return f"{n:,}"
    return f"{n:,} chosen of {of:,}" if score.get("chosen") else f"the first {n:,} of {of:,}"


def facts_of(name: Mapping[str, Any], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what is known of a named cell beside its levels; missing numbers are missing."""
    effective = name["effective_plw"]
    counts = record["parameters"] if record else {}
    return {
        "effective_plw": effective,
        "wp": effective**WP_EXPONENT if effective is not None else None,
        "rg": name["rg"],
        "dataset_type": dataset_type(name["rg"]),
        "trainable_parameters": counts.get("trainable"),
        "total_parameters": counts.get("total"),
        "budget_asked": counts.get("budget_asked"),
        "budget": counts.get("budget"),  # how the counts compare, in a word
        "train_rows": name["train_rows"],
        "train_key": name["train_key"],
        "alias": name["alias"],
        "status": name["status"],
        "untuned": name.get("settings", {}).get(UNTUNED),  # whether the rate is a default
        "full_rate": name.get("settings", {}).get(FULL_RATE),  # of full tuning, on an adapter
    }


def dataset_type(rg: float | None) -> str:
    """Return short (Rg < 1), long (Rg >= 1) or text (no prompt): arXiv 2401.13586, section 2."""
    if rg is None or not math.isfinite(rg):
        return "text"
    return "short" if rg < 1 else "long"


def rows_of(name: Mapping[str, Any], record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the table's rows for one named cell: one without a score where it has none."""
    head = name["levels"] | facts_of(name, record)
    if record is None:
        return [head]
    head |= {key: record["costs"].get(key) for key in COSTS}
    wanted = set(name["score_keys"])
    scores = [s for s in record["scores"] if s["score_key"] in wanted]
    return [head | {key: score.get(key) for key in SCORES} for score in scores] or [head]


def table(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the long table as the content of a parquet file."""
    import pandas as pd  # not where records are only looked for: it takes long

    made = list(rows)
    known = set(RESULT_COLUMNS)
    others = dict.fromkeys(name for row in made for name in row if name not in known)
    frame = pd.DataFrame(made, columns=[*RESULT_COLUMNS, *others])
    numbers = ("plw", "completion_weight", "rank", "lr", "seed", "train", "sham", "shuffle_prompts")
    text = [level for level in LEVELS if level not in numbers]
    frame[text] = frame[text].astype("string")
    for name in others:
        frame[name] = _one_type(frame[name])
    buffer = BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _one_type(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return a setting's column as text where any of its values is text, else as it is."""
    import pandas as pd

    known = column.dropna()
    if not any(isinstance(value, str) for value in known):
        return column
    text = [value if isinstance(value, str) else json.dumps(value) for value in known]
    return pd.Series(text, known.index, dtype="string").reindex(column.index)
