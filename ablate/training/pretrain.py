"""Pretraining of a base model from rows and a seed, with a tokenizer trained on the same rows.

It is the training loop of every cell, with weight 1 on every token. The micro base models are made
from the micro world's pretraining text.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from tokenizers import Tokenizer as TrainedTokenizer
from transformers import LlamaConfig, PreTrainedModel

from ablate.config.schema import Dataset, Execution, Loss, Masking, Train
from ablate.data.rows import load_rows
from ablate.data.tokenise import tokenise
from ablate.data.tokenizer import Tokenizer
from ablate.errors import UserError
from ablate.micro.corpus import vocabulary_texts
from ablate.micro.tokenizer import save_tokenizer, train_tokenizer
from ablate.micro.world import world
from ablate.models.initial import initialise
from ablate.objective import make_objective
from ablate.roles import MASKED_ROLES
from ablate.streams import Streams
from ablate.training import stop
from ablate.training.checkpoints.keeper import checkpoints
from ablate.training.history import Result
from ablate.training.loop import train

CHECKPOINTS = "checkpoints"  # folder, until the model is written
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
    """Return the training course of a Llama from scratch, which is written to `folder`.

    Until it is written, `folder` has its checkpoints, from which the same call goes on.

    Args:
        folder: where the model goes, in the hub's format.
        dataset: the rows; every token is trained, those of the template included.
        settings: optimiser, schedule and batch.
        shape: of `LlamaConfig`, vocabulary included; tied embeddings.
        seed: of the initial weights and the order of the rows.
        execution: threads and device.
        tick: called with the number of steps done and of all steps.

    Raises:
        TrainingStopped: it was asked to stop, and did after a step.
        UserError: the rows cannot be read, or need a larger vocabulary; nothing was written.
    """
    tokenizer = train_tokenizer(_texts(dataset), int(shape["vocab_size"]))
    if tokenizer.get_vocab_size() > shape["vocab_size"]:
        raise UserError(
            f"pretrain.vocab_size={shape['vocab_size']}: these rows need at least "
            f"{tokenizer.get_vocab_size()}, an entry for every character"
        )
    positions = int(shape["max_position_embeddings"])
    with tempfile.TemporaryDirectory() as draft:
        save_tokenizer(tokenizer, Path(draft), max_length=positions)
        data = tokenise(
            dataset,
            "train",
            tokenizer=Tokenizer(Path(draft)),
            max_length=settings.max_length,
            boundary=settings.boundary,
        )
    execution, streams = execution or Execution(), Streams(seed)
    config = LlamaConfig(**shape, **END_TOKENS, tie_word_embeddings=True)
    model = initialise(config, streams=streams)
    everything = Masking(name="none", weights=dict.fromkeys(MASKED_ROLES, 1.0))
    asked = json.dumps([asdict(settings), dict(shape), seed, data.content_hash])
    kept = folder / CHECKPOINTS / hashlib.sha256(asked.encode()).hexdigest()[:16]
    with stop.stopping_on_signals():
        course = train(
            model,
            data,
            settings,
            objective=make_objective(everything, plw=1.0, completion_weight=1.0, loss=Loss()),
            streams=streams,
            execution=execution,
            tick=tick,
            checkpoints=checkpoints(execution, kept),
        )
    _save(model, tokenizer, folder, max_length=positions)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
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


def _save(
    model: PreTrainedModel, tokenizer: TrainedTokenizer, folder: Path, *, max_length: int
) -> None:
    """Write the files of model and tokenizer into `folder`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        save_tokenizer(tokenizer, Path(draft), max_length=max_length)
        model.save_pretrained(draft)
        for file in Path(draft).iterdir():
            file.chmod(0o644)
            file.replace(folder / file.name)
