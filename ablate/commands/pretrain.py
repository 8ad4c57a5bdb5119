"""`ablate pretrain`: makes a small base model, micro's own or one from the user's rows."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.commands.verb import CONFIG_DIR, OVERRIDES, Verb, folders
from ablate.errors import UserError
from ablate.paths import check_folder
from ablate.terminal import CONSOLE, duration

if TYPE_CHECKING:
    from ablate.config.schema import Cell

DEFAULTS = ("dataset=micro_pretraining", "train=pretrain", "evaluate=none")
UNUSED = (
    "rates", "report", "retry_failed", "score_base", "single", "skip_illegal", "stop_after",
    "cell_minutes", "tracker", "tracker_project",
)  # fmt: skip


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    from ablate.config import compose
    from ablate.config.composer import config_loader
    from ablate.config.grid import cells
    from ablate.config.overrides import key_of, top_of

    for line in rest:
        if top_of(key_of(line)) in UNUSED:
            raise UserError(f"{line}: is of no use to ablate pretrain")
    grid = compose.expand([*DEFAULTS, *rest], loader=config_loader(folders(given)))
    (entry, *more) = cells(grid)
    if more:
        raise UserError(f"pretrain makes one model, not {1 + len(more)}")
    if entry.cell is None:
        raise UserError(entry.error or "cannot be built")
    _make(entry.cell, Path(grid.settings["out"]), grid.settings["pretrain"])
    return 0


def _make(cell: "Cell", folder: Path, shape: dict[str, Any]) -> None:
    """Pretrain the model into `folder` and print what it took."""
    from ablate import hub

    if cell.dataset.source == "hub":
        hub.check_data(f"dataset.path={cell.dataset.path}", cell.dataset.path)
    from ablate.training.pretrain import pretrain  # torch

    if (folder / "model.safetensors").exists():
        raise UserError(f"out={folder}: there is a model already; choose another folder")
    check_folder("out", folder)
    if (folder / "cells").exists() or (folder / "designs").exists():
        raise UserError(f"out={folder}: is a folder of results; choose another for a model")
    if cell.execution.devices > 1:
        raise UserError(
            f"execution.devices={cell.execution.devices}: must be 1 for ablate pretrain"
        )
    if cell.train.max_length > shape["max_position_embeddings"]:
        raise UserError(
            f"train.max_length={cell.train.max_length}: must be at most "
            f"pretrain.max_position_embeddings={shape['max_position_embeddings']}"
        )
    from rich.progress import Progress

    bar = Progress(console=CONSOLE)
    task = bar.add_task("pretraining", total=None)

    def tick(done: int, steps: int) -> None:
        bar.start()  # at the first step: what is wrong before it is one line without a bar
        bar.update(task, completed=done, total=steps)

    try:
        course = pretrain(
            folder,
            cell.dataset,
            cell.train,
            shape=shape,
            seed=cell.seed,
            execution=cell.execution,
            tick=tick,
        )
    finally:
        bar.stop()
    if course.resumed:
        CONSOLE.print(f"went on after step {course.resumed[-1]}, from a checkpoint")
    CONSOLE.print(
        f"{folder}: {course.tokens_seen:,} tokens in {duration(course.train_seconds)}, "
        f"last loss {course.history[-1]['loss']:.3f} nats"
    )


VERB = Verb(
    name="pretrain",
    summary="make a small base model: micro's own, or one from your rows",
    about=(
        "Trains a Llama from scratch on rows, and a tokenizer for it, into OUT. Settings under "
        "pretrain.* are its shape."
    ),
    words=OVERRIDES,
    options=(CONFIG_DIR,),
    examples=(
        "ablate pretrain seed=0 out=my_base",
        "ablate pretrain dataset=local dataset.path=rows.jsonl out=my_base",
        "ablate pretrain pretrain.hidden_size=128 train.epochs=1 out=wide",
    ),
    run=_run,
    settings=(
        "out", "seed", DEFAULTS[0], "dataset.path", "train.lr", "train.epochs", "train.max_length",
        "train.batch_size", "pretrain.vocab_size", "pretrain.hidden_size",
        "pretrain.intermediate_size", "pretrain.num_hidden_layers",
        "pretrain.num_attention_heads", "pretrain.max_position_embeddings",
    ),
)  # fmt: skip
