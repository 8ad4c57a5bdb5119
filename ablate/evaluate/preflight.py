"""What must hold before the first cell trains, so that no trained cell turns out to be unscorable.

Every benchmark can be loaded and asked; every answer has a token of its own behind its prompt; and
training and scoring cut the same text into the same tokens and ask in the same words, on the
study's own rows and prompts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from lm_eval.api.model import TemplateLM

from ablate.config.schema import Cell
from ablate.data.formats import Row
from ablate.data.messages import forms, plain
from ablate.data.rows import FEW, load_rows
from ablate.data.templates import render
from ablate.data.tokenizer import Tokenizer
from ablate.errors import RowError, UserError
from ablate.evaluate import harness
from ablate.evaluate.live import PromptEncoder, swallowed
from ablate.evaluate.requests import chat_template
from ablate.evaluate.scoring import Wanted
from ablate.experiment.cell_data import tokenizer_of
from ablate.models.load import load_tokenizer

TEXTS = 200  # rows of a data set, and prompts of a task, whose tokens are compared


def check(wanted: Sequence[Wanted]) -> None:
    """Check what is to be scored, each benchmark once per tokenizer, template and settings.

    Raises:
        UserError: a benchmark cannot be had, or would not be scored as the rows are trained.
    """
    distinct: dict[tuple[object, ...], Wanted] = {}
    for one in wanted:
        cell, asked = one.cell, replace(one.cell.evaluate, tasks=(one.unit.name,))
        mark = (one.files.folder, cell.model.chat_template, cell.dataset.template, asked)
        distinct.setdefault(mark, one)
    data: set[tuple[object, ...]] = set()
    for one in distinct.values():
        cell = one.cell
        ours = tokenizer_of(cell)
        theirs = load_tokenizer(one.files.folder, cell.model.chat_template)
        source = (one.files.folder, cell.model.chat_template, id(cell.dataset))
        if source not in data:
            data.add(source)
            where = f"dataset.path={cell.dataset.path}"
            _check_ids(ours, theirs, _rows(cell, ours), where)
            if cell.dataset.template == "chat":
                _check_prompts(ours, theirs, load_rows(cell.dataset, "train", FEW)[:TEXTS], where)
        _check_task(one, ours, theirs)


def _check_task(one: Wanted, ours: Tokenizer, theirs: Any) -> None:
    cell, name = one.cell, one.unit.name
    chat = cell.dataset.template == "chat"
    asked = replace(cell.evaluate, tasks=(name,))
    encode = PromptEncoder(theirs, harness.memo(theirs), chat=chat)
    for bench in harness.prepare(asked, theirs, chat=chat):
        for task in bench.tasks.values():
            prompts = dict.fromkeys(instance.args[0] for instance in task.instances)
            _check_ids(ours, theirs, prompts, f"evaluate.tasks={name}")
            for instance in task.instances:
                if instance.request_type == "loglikelihood" and not _scored(instance, encode):
                    what = swallowed(*instance.args[:2])
                    raise UserError(f"evaluate.tasks={name}: item {instance.doc_id}: {what}")


def _scored(instance: Any, encode: PromptEncoder) -> list[int]:
    """Return the tokens of an answer that lm-eval scores."""
    context, answer = instance.args[:2]
    if not context:
        return encode(answer, bos=False)
    lm: Any = SimpleNamespace(backend="causal", tok_encode=encode)
    return TemplateLM._encode_pair(lm, context, answer)[1]


def _rows(cell: Cell, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the text of rows as they are trained on."""
    for row in load_rows(cell.dataset, "train", FEW)[:TEXTS]:
        try:
            yield render(row, cell.dataset, tokenizer).text
        except RowError:  # a row that is left out
            continue


def _check_prompts(ours: Tokenizer, theirs: Any, rows: Iterable[Row], where: str) -> None:
    """Raise where scoring would ask a row's question in other words than training does."""
    asked = chat_template(theirs)
    for row in rows:
        messages = plain(next(forms(row.turns)))[:-1]
        if (
            not messages
            or row.tools
            or any(set(message) - {"role", "content"} for message in messages)
        ):
            continue
        try:
            trained = ours.chat(messages, generation_prompt=True)
        except RowError:
            continue
        scored = asked(messages)
        if scored != trained:
            at = sum(1 for _ in _same(scored, trained))
            raise UserError(
                f"{where}: {row.place}: the chat template of model.path={ours.folder} asks its "
                f"question otherwise in scoring than in training near {trained[at : at + 40]!r}; "
                "save its tokenizer anew with transformers"
            )


def _check_ids(ours: Tokenizer, theirs: Any, texts: Iterable[str], where: str) -> None:
    for _, text in zip(range(TEXTS), texts, strict=False):
        scored = theirs(text, add_special_tokens=False).input_ids
        trained = ours.encode(text).ids.tolist()
        if scored != trained:
            at = sum(1 for _ in _same(scored, trained))
            near = theirs.decode(scored[max(0, at - 3) : at + 3])
            raise UserError(
                f"{where}: training and scoring cut its text into different tokens near {near!r}; "
                f"save the tokenizer of model.path={ours.folder} anew with transformers"
            )


def _same(one: Sequence[object], other: Sequence[object]) -> Iterator[object]:
    for a, b in zip(one, other, strict=False):
        if a != b:
            return
        yield a
