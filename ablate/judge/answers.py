"""The answers that are judged: those that a record holds, or new ones to a file of prompts.

of a task    items.parquet has the text that every run generated for every item
of a file    every run whose weights are kept answers each prompt greedily under its template;
             what was generated is kept beside the judgments, and not generated again
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ablate.config.build import build
from ablate.data.sources import read_table
from ablate.errors import UserError
from ablate.judge.jsonl import append, rows
from ablate.results.items import with_score_keys
from ablate.results.record import digest
from ablate.results.store import Store

FILE = "prompts"  # what stands for a task in the tables of a file of prompts
MAX_NEW = 256  # tokens of an answer to a prompt of a file
INSTRUCTION = ("instruction", "prompt", "question")  # the names that a file may have for it
REFERENCE = ("output", "reference", "answer")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: how it is told to a judge, and the reference answer where there is one."""

    task: str
    doc_id: int
    text: str
    reference: str | None
    given: str = ""  # the input of an Alpaca row


Said = dict[tuple[str, int], str]  # (task, doc_id) -> what a run answered


def recorded_tasks(store: Store, key: str) -> list[str]:
    """Return the tasks of a record that have generated answers."""
    return [str(t) for t in dict.fromkeys(_generated(store, key)["task"])]


def recorded(
    store: Store, key: str, tasks: Sequence[str], limit: int | None
) -> tuple[Said, dict[tuple[str, int], tuple[str, str]]]:
    """Return what a recorded run answered, and of every item the prompt's hash and right answer.

    Raises:
        UserError: the record has no generated answers of a task.
    """
    rows = _generated(store, key)
    said: Said = {}
    asked: dict[tuple[str, int], tuple[str, str]] = {}
    for task in tasks:
        own = rows[rows["task"] == task]
        if not len(own):
            known = ", ".join(dict.fromkeys(rows["task"])) or "none"
            raise UserError(f"--tasks={task}: cells/{key} has no generated answers of it ({known})")
        for row in (
            own.sort_values("doc_id", kind="stable").head(limit or len(own)).to_dict("records")
        ):
            place = (task, int(row["doc_id"]))
            said[place] = str(row["output"])
            asked[place] = (str(row["prompt_hash"]), str(row["gold"]))
    return said, asked


def _generated(store: Store, key: str) -> pd.DataFrame:
    """Return the items of a record with a text that the run generated, one row each."""
    record, fault = store.record(key), store.fault(key)
    if record is None:
        raise UserError(f"{store.folder(key)}: {fault or 'no record here'}")
    items = pd.read_parquet(store.folder(key) / "items.parquet")
    items = with_score_keys(items, record["scores"])
    chosen = items[items["output"].notna() & items["loglikelihoods"].isna()]
    return chosen.drop_duplicates(["task", "doc_id"])


def of_task(
    store: Store, key: str, asked: Mapping[tuple[str, int], tuple[str, str]], *, text: bool
) -> list[Prompt]:
    """Return the prompts of items; their text, which takes seconds to make, where it is wanted."""
    shown: dict[tuple[str, int], str] = {}
    if text:
        from ablate.evaluate.rebuild import prompts

        table = prompts(store.folder(key))
        shown = {(str(t), int(d)): str(p) for t, d, p in table[["task", "doc_id", "prompt"]].values}
    return [
        Prompt(task, doc, shown.get((task, doc), ""), gold) for (task, doc), (_, gold) in
        asked.items()
    ]  # fmt: skip


def of_file(file: Path, limit: int | None) -> list[Prompt]:
    """Return the prompts of a JSON, JSONL, CSV or parquet file.

    Every row has an instruction, perhaps an input and a reference answer, as AlpacaEval's and
    Alpaca's have, or MT-Bench's `turns`, whose first is asked.

    Raises:
        UserError: it cannot be read, or a row has no instruction.
    """
    found = []
    for number, record in enumerate(read_table("--prompts", file)):
        if limit is not None and number >= limit:
            break
        fields = record.fields
        turns = fields.get("turns")
        first = turns[0] if isinstance(turns, list) and turns else None
        text = next((fields[n] for n in INSTRUCTION if fields.get(n)), first)
        if not isinstance(text, str) or not text.strip():
            names = ", ".join((*INSTRUCTION, "turns"))
            raise UserError(f"--prompts={file}: row {number + 1} has none of {names}")
        reference = next((fields[n] for n in REFERENCE if isinstance(fields.get(n), str)), None)
        found.append(Prompt(FILE, number, text, reference, str(fields.get("input") or "")))
    if not found:
        raise UserError(f"--prompts={file}: holds no row")
    return found


def told(prompt: Prompt) -> str:
    """Return a prompt of a file as a judge reads it."""
    return f"{prompt.text}\n\n{prompt.given}" if prompt.given else prompt.text


def kept_weights(store: Store, keys: Sequence[str]) -> None:
    """Check that runs can answer new prompts.

    Raises:
        UserError: the weights of one were not kept.
    """
    from ablate.adapters.weights import kept

    for key in keys:
        record = store.record(key)
        if record is None:
            raise UserError(f"{store.folder(key)}: {store.fault(key) or 'no record here'}")
        if not build(record["config"]).is_base and not kept(store.folder(key) / "weights"):
            raise UserError(
                f"--prompts: the weights of {store.folder(key)} were not kept, and without them it "
                "answers no new prompts; execution.keep_weights_mb keeps larger ones"
            )


def generated(
    store: Store, key: str, prompts: Sequence[Prompt], *, max_new: int, kept: Path
) -> Said:
    """Return what a run answers to the prompts of a file, generated where it is not kept yet."""
    marks = [digest({"key": key, "prompt": p.text, "input": p.given, "max_new": max_new})
             for p in prompts]  # fmt: skip
    known = {str(row["id"]): str(row["answer"]) for row in rows(kept)}
    missing = [i for i, mark in enumerate(marks) if mark not in known]
    if missing:
        texts = _answered(store, key, [prompts[i] for i in missing], max_new)
        new = [{"id": marks[i], "run": key, "answer": text, "prompt": prompts[i].text}
               for i, text in zip(missing, texts, strict=True)]  # fmt: skip
        append(kept, new)
        known |= {str(row["id"]): row["answer"] for row in new}
    return {(p.task, p.doc_id): known[mark] for p, mark in zip(prompts, marks, strict=True)}


def _answered(store: Store, key: str, prompts: Sequence[Prompt], max_new: int) -> list[str]:
    from lm_eval.api.instance import Instance

    from ablate.evaluate.live import LiveLM, TokenMemo
    from ablate.evaluate.requests import quiet
    from ablate.models.files import resolve
    from ablate.models.load import load_tokenizer
    from ablate.run import restored

    record = store.record(key)
    assert record is not None
    cell = build(record["config"])
    tokenizer = load_tokenizer(resolve(cell.model).folder, cell.model.chat_template)
    model, _ = restored(cell, store.folder(key))
    chat = cell.dataset.template == "chat"
    with quiet():
        lm = LiveLM(model.eval(), tokenizer, batch_size=cell.execution.eval_batch_size,
                    memo=TokenMemo(), chat=chat)  # fmt: skip
    texts = list(_in_template(prompts, cell.dataset.template, tokenizer))
    room = lm.max_length - max(len(lm.tok_encode(text)) for text in texts)
    if room < 1:
        raise UserError(f"--prompts: a prompt has more than the {lm.max_length:,} tokens that the "
                        f"model of cells/{key} takes")  # fmt: skip
    settings: dict[str, Any] = {"until": [], "do_sample": False, "max_gen_toks": min(room, max_new)}
    requests = [Instance("generate_until", {}, (text, settings), 0, (FILE, i, 1))
                for i, text in enumerate(texts)]  # fmt: skip
    return lm.generate_until(requests)


def _in_template(prompts: Sequence[Prompt], template: str, tokenizer: Any) -> Iterator[str]:
    """Yield prompts as training has them."""
    from ablate.data.templates import frame_of
    from ablate.evaluate.requests import chat_template

    frame = None if template == "chat" else frame_of(template)
    for prompt in prompts:
        if template == "chat":
            yield chat_template(tokenizer)([{"role": "user", "content": told(prompt)}])
        else:
            yield frame.asked(prompt.text, prompt.given) if frame else told(prompt)
