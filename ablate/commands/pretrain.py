"""A base model from nothing but rows and a seed: `ablate pretrain`.

It is the same loop that every cell goes through, with every token trained. The micro bases are made
from the micro world's pretraining text; rows of your own make a base of your own, with a tokenizer
trained on them.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from transformers import LlamaConfig, PreTrainedModel

from ablate.config import compose
from ablate.config.grid import cells
from ablate.config.schema import Cell, Dataset, Execution, Loss, Masking, Train
from ablate.data.rows import load_rows
from ablate.data.tokenise import Tokenizer, tokenise
from ablate.errors import UserError
from ablate.micro.corpus import vocabulary_texts
from ablate.micro.tokenizer import save_tokenizer, train_tokenizer
from ablate.micro.world import world
from ablate.models.load import initialise
from ablate.objective import make_objective
from ablate.progress import duration
from ablate.roles import MASKED_ROLES
from ablate.streams import Streams
from ablate.training.loop import Result, train

END_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def pretrain(
    folder: Path,
    dataset: Dataset,
    settings: Train,
    *,
    shape: Mapping[str, int | float],
    seed: int,
    execution: Execution | None = None,
    tick: Callable[[int, int], None] | None = None,
) -> Result:
    """Return the course of pretraining a Llama from scratch, which is written to `folder`.

    Args:
        folder: where the model goes, in the hub's format.
        dataset: its rows; every token of them is trained, the template's too.
        settings: optimiser, schedule and batch.
        shape: of `LlamaConfig`, vocabulary included; tied embeddings.
        seed: of the initial weights and the order of the rows.
        execution: threads and device.
        tick: is told the steps done and all steps.
    """
    tokenizer = train_tokenizer(_texts(dataset), int(shape["vocab_size"]))
    save_tokenizer(tokenizer, folder, max_length=int(shape["max_position_embeddings"]))
    data = tokenise(
        dataset,
        "train",
        tokenizer=Tokenizer(folder),
        max_length=settings.max_length,
        boundary=settings.boundary,
    )
    streams = Streams(seed)
    config = LlamaConfig(**shape, **END_TOKENS, tie_word_embeddings=True)
    model = initialise(config, streams=streams)
    everything = Masking(name="none", weights=dict.fromkeys(MASKED_ROLES, 1.0))
    course = train(
        model,
        data,
        settings,
        objective=make_objective(everything, plw=1.0, completion_weight=1.0, loss=Loss()),
        streams=streams,
        execution=execution or Execution(),
        tick=tick,
    )
    _save(model, folder)
    return course


def _texts(dataset: Dataset) -> list[str]:
    """Return the text that the tokenizer is trained on."""
    if dataset.source == "micro":
        return vocabulary_texts(world(), rows=5000)
    found = []
    for row in load_rows(dataset, "train"):
        parts = (text for turn in row.turns for _, text in turn.parts)
        found += [row.text] if row.text is not None else [text for text in parts if text]
    return found


def _save(model: PreTrainedModel, folder: Path) -> None:
    """Write the model's files into `folder`, each whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        model.save_pretrained(draft)
        for file in Path(draft).iterdir():
            file.chmod(0o644)
            file.replace(folder / file.name)


def main(words: list[str], console: Console) -> int:
    """Carry out the verb: `ablate pretrain KEY=VALUE ...`; return the exit status.

    Raises:
        UserError: the request is wrong.
    """
    defaults = ["dataset=micro_pretraining", "train=pretrain", "evaluate=none"]
    grid = compose.expand([*defaults, *words])
    (entry, *more) = cells(grid)
    if more:
        raise UserError(f"ablate pretrain makes one model, not {1 + len(more)}")
    if entry.cell is None:
        raise UserError(entry.error or "cannot be built")
    return _make(entry.cell, Path(grid.settings["out"]), grid.settings["pretrain"], console)


def _make(cell: Cell, folder: Path, shape: dict[str, Any], console: Console) -> int:
    if (folder / "model.safetensors").exists():
        raise UserError(f"out={folder}: there is a model already; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={folder}: cannot be written ({error.strerror})") from None
    with Progress(console=console) as bar:
        task = bar.add_task("pretraining", total=None)
        course = pretrain(
            folder,
            cell.dataset,
            cell.train,
            shape=shape,
            seed=cell.seed,
            execution=cell.execution,
            tick=lambda done, steps: bar.update(task, completed=done, total=steps),
        )
    last = course.history[-1]["loss"]
    console.print(
        f"{folder}: {course.tokens_seen:,} tokens in {duration(course.train_seconds)}, "
        f"last loss {last:.3f} nats",
        highlight=False,
    )
    return 0
