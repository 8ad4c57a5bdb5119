"""The prompts of a recorded cell, made again; `items.parquet` keeps their hashes alone."""

from pathlib import Path

import pandas as pd
import yaml

from ablate.config.build import build
from ablate.evaluate import harness
from ablate.evaluate.answers import prompt_hash
from ablate.models.files import resolve
from ablate.models.load import load_tokenizer


def prompts(folder: str | Path) -> pd.DataFrame:
    """Return task, doc_id, prompt_hash and prompt of every item that a cell was asked.

    Of an item whose options have a prompt each, the first one; the columns are those of the cell's
    `items.parquet`, to merge with.

    Args:
        folder: of the cell, with its config.yaml.

    Raises:
        UserError: its model or a benchmark cannot be had any more.
    """
    cell = build(yaml.safe_load((Path(folder) / "config.yaml").read_text(encoding="utf-8")))
    tokenizer = load_tokenizer(resolve(cell.model).folder, cell.model.chat_template)
    chat = cell.dataset.template == "chat"
    found = {
        (name, instance.doc_id): instance.args[0]
        for bench in harness.prepare(cell.evaluate, tokenizer, chat=chat)
        for name, task in bench.tasks.items()
        for instance in reversed(task.instances)
    }
    rows = [(task, doc, prompt_hash(text), text) for (task, doc), text in found.items()]
    frame = pd.DataFrame(rows, columns=["task", "doc_id", "prompt_hash", "prompt"])
    return frame.sort_values(["task", "doc_id"], ignore_index=True, kind="stable")
