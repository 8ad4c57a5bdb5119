"""Where a design finds its models and data: on this machine, or for a plan in published sizes.

`Here` reads files, and downloads what is not there. `Assumed` serves `ablate plan`, which downloads
no model: a model of the hub that is not on this machine has the sizes of its `model.shape`, and a
data set whose rows or whose tokenizer are not there the sizes of its `dataset.published`, or those
of its rows at `CHARACTERS` a token. It keeps what it assumed, in words.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablate import hub
from ablate.config.build import plain
from ablate.config.schema import Cell, Dataset, Model
from ablate.data.rows import Row, empty_part, load
from ablate.data.templates import frame_of
from ablate.data.tokenise import Summary, generation_ratio, summary
from ablate.errors import UserError
from ablate.experiment.labels import label
from ablate.models.files import ModelFiles, resolve
from ablate.models.folders import is_here
from ablate.models.shapes import NOT_HERE, from_shape

CHARACTERS = 4  # of English in a token of a vocabulary of 30,000 or more
TAGS = {"chat": 12, "plain": 2}  # tokens around a row: role tags of two turns, ends


class Here:
    """Models and data as they are; of the data the first records alone where those are enough."""

    def __init__(self, first: int | None = None) -> None:
        """Take the first so many records of every data set, or all."""
        self.first = first

    def files(self, model: Model) -> ModelFiles:
        """Return the files of a base model."""
        return resolve(model)

    def summary(self, cell: Cell, files: ModelFiles, part: str) -> Summary:
        """Return the summary of one part of the cell's data under its model's tokenizer."""
        return summary(
            cell.dataset,
            part,
            model_folder=files.folder,
            chat_template=cell.model.chat_template,
            max_length=cell.train.max_length,
            boundary=cell.train.boundary,
            first=self.first,
        )

    def steps(self, cell: Cell, files: ModelFiles, data: Summary) -> int:
        """Return how many optimizer steps a run takes, as `data.batches.order` makes them."""
        train = cell.train
        if counts_steps(cell):
            return about_steps(cell, data)
        from ablate.data.batches import order  # torch: how rows fall into steps must be tried
        from ablate.experiment.cell_data import tokenised
        from ablate.streams import Streams

        stream = Streams(cell.seed, cell.sham).numpy("order")
        return len(order(tokenised(cell, "train", self.first), train=train, generator=stream))


class Assumed(Here):
    """The same with published sizes for what is not on this machine; `said` names each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, None] = {}
        self._made: set[str] = set()  # summaries, by content

    def files(self, model: Model) -> ModelFiles:
        """Return the files of a base model, or what its shape says of them."""
        if not model.shape or is_here(model):
            return super().files(model)
        told = f"model={label(model)} is not on this machine: its sizes are its model.shape's"
        self.said[told] = None
        return from_shape(model)

    def summary(self, cell: Cell, files: ModelFiles, part: str) -> Summary:
        """Return the summary of one part of the data, or what is published or counted of it."""
        dataset = cell.dataset
        if files.folder.parts[:1] != Path(NOT_HERE).parts:
            try:
                return super().summary(cell, files, part)
            except UserError:
                if not _is_assumed(dataset) or (dataset.source == "hub" and not hub.unreachable()):
                    raise
        if _is_assumed(dataset):
            told = "its published rows and mean lengths"
            sizes: Mapping[str, float] = dataset.published
            rows = _share(dataset, part, round(sizes["rows"]))
        else:
            told = f"its rows, {CHARACTERS} characters a token"
            found = load(dataset, part).rows
            sizes, rows = _counted(found), len(found)
        self.said[f"tokens of dataset={label(dataset)}: {told}"] = None
        made = _summary(cell, files, part, rows=rows, sizes=sizes)
        self._made.add(made.content_hash)
        return made

    def steps(self, cell: Cell, files: ModelFiles, data: Summary) -> int:
        """Return how many optimizer steps a run takes, about where its rows are not here."""
        if data.content_hash not in self._made:
            return super().steps(cell, files, data)
        return about_steps(cell, data)


def counts_steps(cell: Cell) -> bool:
    """Return whether the number of rows tells the number of steps; else their lengths decide."""
    return cell.train.max_steps is not None or cell.train.batch_unit == "examples"


def about_steps(cell: Cell, data: Summary) -> int:
    """Return how many optimizer steps a run takes: about, unless `counts_steps`."""
    train = cell.train
    if train.max_steps is not None:
        return train.max_steps
    if train.batch_unit == "examples":
        return math.ceil(_examples(cell, data) / train.batch_size)
    return math.ceil(_examples(cell, data) * data.mean_length / train.batch_size)


def _examples(cell: Cell, data: Summary) -> int:
    """Return how many examples a run without `max_steps` trains on, each epoch's anew."""
    return max(1, round(cell.train.epochs * data.rows))


def around(template: str) -> int:
    """Return about how many tokens a template puts around a row without an input.

    Alpaca's has 34 under Llama's tokenizer.
    """
    frame = frame_of(template)
    return max(2, round(len(frame.asked("")) / CHARACTERS)) if frame else TAGS[template]


def _is_assumed(dataset: Dataset) -> bool:
    """Return whether a data set of known sizes is of the hub, or a file that is not here."""
    absent = dataset.source == "local" and not Path(dataset.path).expanduser().exists()
    return bool(dataset.published) and (absent or dataset.source == "hub")


def _share(dataset: Dataset, part: str, rows: int) -> int:
    """Return how many of the published rows are in a part."""
    low, high = (round(share * rows) for share in getattr(dataset.splits, part))
    found = min(high - low, dataset.max_rows or rows)
    if not found:
        raise empty_part(dataset, part)
    return found


def _counted(rows: Sequence[Row]) -> dict[str, float]:
    """Return the mean lengths of rows, as `dataset.published` has them."""
    characters: dict[str, int] = {}
    for row in rows:
        parts = [part for turn in row.turns for part in turn.parts]
        for role, text in [*parts, *[("text", row.text)] * (row.text is not None)]:
            name = role if role in ("completion", "text") else "prompt"
            characters[name] = characters.get(name, 0) + len(text or "")
    return {name: count / CHARACTERS / len(rows) for name, count in characters.items()}


def _summary(
    cell: Cell, files: ModelFiles, part: str, *, rows: int, sizes: Mapping[str, float]
) -> Summary:
    """Return a summary made of mean lengths; rows of more than `max_length` tokens are cut."""
    most = cell.train.max_length
    if "text" in sizes:
        lengths = {"text": min(sizes["text"], most)}
    else:
        prompt = {
            "boilerplate": float(around(cell.dataset.template)),
            "instruction": sizes.get("prompt", 0.0),
        }
        left = max(1.0, most - sum(prompt.values()))
        lengths = prompt | {"completion": min(sizes.get("completion", 1.0), left)}
    tokens = round(rows * sum(lengths.values()))
    counts = {role: round(rows * mean) for role, mean in lengths.items()}
    about = plain(cell.dataset) | {"name": "", "part": part, "lengths": lengths, "rows": rows}
    content = json.dumps([NOT_HERE, files.content_hash, about], sort_keys=True)
    return Summary(
        content_hash=hashlib.sha256(content.encode()).hexdigest(),
        counts=counts,
        rows=rows,
        rows_in=rows,
        truncated=0,
        dropped={},
        tokens=tokens,
        mean_length=tokens / rows,
        max_length=min(most, files.max_positions),
        largest_id=0,
        rg_tokens=generation_ratio(counts),
        rg_before_truncation=generation_ratio(counts),
    )
