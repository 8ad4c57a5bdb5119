"""Pretraining of the micro base models: corpus, tokenizer and weights from nothing but seeds.

It is the same loop that every cell goes through, on plain text. The world, the corpus and the
tokenizer are the same for all seeds; the seed changes the initial weights and the order of pages.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from ablate.config import Dataset, Execution, Loss, Masking, Train
from ablate.data.tokenise import Tokeniser, tokenise
from ablate.micro.corpus import vocabulary_texts
from ablate.micro.tokenizer import VOCABULARY, save_tokenizer, train_tokenizer
from ablate.micro.world import world
from ablate.model import initialise
from ablate.roles import MASKED_ROLES
from ablate.streams import Streams
from ablate.train import Result, train
from ablate.weights import objective

POSITIONS = 512
PAGES = 75_000
SHAPE: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": True,
    # Facts are learnt several times sooner than from the usual 0.02, which suits wide models.
    "initializer_range": 0.08,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SETTINGS = Train(
    name="pretrain",
    lr=5e-3,
    betas=(0.9, 0.98),
    weight_decay=0.01,
    schedule="cosine",
    warmup_ratio=0.03,
    epochs=1.0,
    batch_size=8,
    max_length=256,
)


def pretrain(
    folder: Path,
    seed: int,
    *,
    pages: int = PAGES,
    execution: Execution | None = None,
    tick: Callable[[int, int], None] | None = None,
) -> Result:
    """Return the course of pretraining a micro base model, which is written to `folder`.

    Args:
        folder: where the model goes, in the hub's format.
        seed: of the initial weights and the order of the pages.
        pages: how long to train; a page is about 120 tokens and is seen once.
        execution: threads and device.
        tick: is told the steps done and all steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(vocabulary_texts(world(), rows=5000))
    save_tokenizer(tokenizer, folder, max_length=POSITIONS)
    dataset = Dataset(
        name="micro_pretraining",
        source="micro",
        path="micro_pretraining",
        format="text",
        options={"train_size": pages},
    )
    tokenised = tokenise(
        dataset,
        "train",
        tokeniser=Tokeniser(folder),
        max_length=SETTINGS.max_length,
        boundary=SETTINGS.boundary,
    )
    streams = Streams(seed)
    model = initialise(LlamaConfig(**SHAPE), streams=streams)
    everything = Masking(name="none", weights=dict.fromkeys(MASKED_ROLES, 1.0))
    course = train(
        model,
        tokenised,
        SETTINGS,
        goal=objective(everything, plw=1.0, completion_weight=1.0, loss=Loss()),
        streams=streams,
        execution=execution or Execution(device="cpu"),
        tick=tick,
    )
    _save(model, folder)
    return course


def _save(model: Any, folder: Path) -> None:
    """Write the model's files into `folder`, each whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        model.save_pretrained(draft)
        for file in Path(draft).iterdir():
            file.replace(folder / file.name)
