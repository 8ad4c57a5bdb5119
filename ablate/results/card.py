"""The model card of a trained cell: README.md as the hub shows it, made from its record alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from ablate.results.items import SCORE_KEY, with_score_keys
from ablate.results.record import items_text

Z = 1.959964  # of a two-sided 95 % normal interval

ADAPTER_CODE = """\
import ablate.adapters.tuners  # registers this project's own PEFT types
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{name}")
"""
MODEL_CODE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
"""
SHOWN = {  # what a reader asks of a training run: its words, and where the configuration has it
    "base model": "model.path", "data": "dataset.path", "template": "dataset.template",
    "masking": "masking.name", "prompt loss weight": "plw", "loss divided by": "loss.normaliser",
    "loss scope": "loss.scope", "token rule": "loss.token_rule", "adapter": "adapter.name",
    "rank": "rank", "start": "init.name",
    "embeddings": "embeddings", "base precision": "base_precision",
    "optimizer": "optimizer.name", "learning rate": "train.lr", "schedule": "train.schedule",
    "weight decay": "train.weight_decay", "epochs at most": "train.epochs",
    "steps at most": "train.max_steps",
    "batch size": "train.batch_size", "longest row, tokens": "train.max_length",
    "precision": "train.precision", "seed": "seed",
}  # fmt: skip


def card(
    record: Mapping[str, Any], items: pd.DataFrame, *, name: str, base: str, merged: bool
) -> str:
    """Return the card in Markdown.

    Args:
        record: of the run.
        items: the score of every item: task, metric, doc_id, score.
        name: of the exported folder.
        base: where the base model is: a hub id or a folder.
        merged: whether the folder holds a whole model, otherwise an adapter.
    """
    config = record["config"]
    head = {
        "base_model": base,
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["ablate", str(config["adapter"]["name"])],
    }
    if config["dataset"]["source"] == "hub":
        head["datasets"] = [config["dataset"]["path"]]
    code = (MODEL_CODE if merged else ADAPTER_CODE).format(base=base, name=name)
    what = "the whole model, with what was trained merged in" if merged else "the adapter alone"
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
            f"# {name}\n",
            f"`{base}` fine-tuned in a factorial study; this folder holds {what}. Run "
            f"`{record['train_key']}`.\n",
            f"```python\n{code}```\n",
            f"## Training\n\n{_table(('setting', 'value'), _settings(record))}",
            f"## Scores\n\n{_scores(record, items)}",
            f"## Made with\n\n{_table(('what', 'version'), _versions(record))}",
        ]
    )


def interval(score: Mapping[str, Any], items: pd.Series) -> tuple[float, float] | None:
    """Return the 95 % interval of a score over its items; None where it is not known.

    Wilson's for right and wrong items; else the score and its standard error over items.
    """
    value, n, se = score["value"], score["n"], score["se"]
    if value is None:
        return None
    if len(items) == n > 0 and items.isin([0.0, 1.0]).all():
        p = float(items.mean())
        middle, scale = p + Z**2 / (2 * n), 1 + Z**2 / n
        half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        return (middle - half) / scale, (middle + half) / scale
    return None if se is None else (value - Z * se, value + Z * se)


def _settings(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    parameters, training = record["parameters"], record["training"]
    found = {words: _at(record["config"], path) for words, path in SHOWN.items()}
    rows = [(words, str(value)) for words, value in found.items() if value is not None]
    return [
        *rows,
        ("rows", f"{record['data'].get('rows', 0):,}"),
        ("optimizer steps", f"{training['steps']:,}"),
        ("tokens seen", f"{training['tokens_seen']:,}"),
        ("trained parameters", f"{parameters['trainable']:,} of {parameters['total']:,}"),
    ]


def _at(config: Mapping[str, Any], path: str) -> Any:
    found: Any = config
    for part in path.split("."):  # of an older record some settings are not there
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _scores(record: Mapping[str, Any], items: pd.DataFrame) -> str:
    if not record["scores"]:
        return "The run was not scored.\n"
    lines, items = [], with_score_keys(items, record["scores"])
    for score in record["scores"]:
        named = (SCORE_KEY, "task", "metric")  # a task may be scored twice, on other items
        own = items[np.logical_and.reduce([items[name] == score[name] for name in named])]
        found = interval(score, own["score"])
        value = "-" if score["value"] is None else f"{score['value']:.4g}"
        shown = "-" if found is None else f"{found[0]:.4g} to {found[1]:.4g}"
        lines.append((score["task"], score["metric"], value, shown, items_text(score)))
    head = ("task", "metric", "value", "95 % interval", "items")
    return (
        f"{_table(head, lines)}\nIntervals are over the items of this one run: of right and wrong "
        "items Wilson's, else the score and 1.96 standard errors. Another seed would move the "
        "score by more.\n"
    )


def _versions(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    made = record["provenance"]
    code = {f"code {k}": v for k, v in made["code"].items()}
    return [(str(k), str(v)) for k, v in {**code, **made["packages"]}.items()]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def read_items(folder: Path) -> pd.DataFrame:
    """Return the scores of every item of the record in `folder`."""
    return pd.read_parquet(folder / "items.parquet")
