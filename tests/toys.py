"""Tiny models and tokenised rows that tests share; every role occurs, lengths are uneven."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from ablate.config.schema import Execution, Masking, Train
from ablate.data.tokenise import Labels, Summary, Tokenised
from ablate.roles import NAMES, Role
from tests.reference import Example

VOCAB = 37
# What float32 leaves open of the logits of a tiny model, of the largest one: sums of up to 44
# products in each of 14 matrices that follow one another.
ROUNDING = float((44 * 14) ** 0.5 * torch.finfo(torch.float32).eps)
PROMPT = ("special", "boilerplate", "system", "instruction", "input")
# The masking modes as design tables: the prompt roles that weigh PLW.
MODES = {
    "instruction": (),
    "none": PROMPT,
    "boilerplate": ("system", "instruction", "input"),
    "special": ("boilerplate", "system", "instruction", "input"),
}
LAYOUT = (
    (Role.SPECIAL, 1, 3),
    (Role.BOILERPLATE, 1, 4),
    (Role.SYSTEM, 0, 3),
    (Role.INSTRUCTION, 1, 5),
    (Role.INPUT, 0, 4),
    (Role.SPECIAL, 1, 2),
    (Role.COMPLETION, 1, 7),
)


def masking(mode: str) -> Masking:
    plw = {role: "plw" if role in MODES[mode] else 0.0 for role in PROMPT}
    return Masking(name=mode, weights=plw | {"completion": 1.0})


def examples(count: int = 7, seed: int = 0) -> list[Example]:
    draws = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        roles = [r for r, low, high in LAYOUT for _ in range(draws.integers(low, high + 1))]
        made.append((draws.integers(0, VOCAB, len(roles)).tolist(), roles))
    return made


def tokenised(rows: Sequence[Example]) -> Tokenised:
    sizes = [len(ids) for ids, _ in rows]
    targets = [role for _, roles in rows for role in roles[1:]]
    return Tokenised(
        ids=np.concatenate([ids for ids, _ in rows]).astype(np.int32),
        labels=Labels.of(np.concatenate([roles for _, roles in rows]).astype(np.uint8)),
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        summary=Summary(
            content_hash="toy",
            counts={NAMES[role]: targets.count(role) for role in Role if role in targets},
            rows=len(rows),
            rows_in=len(rows),
            truncated=0,
            dropped={},
            tokens=sum(sizes),
            mean_length=sum(sizes) / len(rows),
            max_length=max(sizes),
            largest_id=VOCAB - 1,
            rg_tokens=None,
            rg_before_truncation=None,
        ),
    )


def llama(dtype: torch.dtype = torch.float64, **changes: Any) -> PreTrainedModel:
    settings = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": VOCAB,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,  # far from uniform predictions, so that a wrong token shows
        "pad_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**settings | changes)).to(dtype).eval()


def train_settings(**changes: Any) -> Train:
    settings = {"name": "toy", "lr": 0.01, "epochs": 1.0, "batch_size": 4, "warmup_ratio": 0.0}
    return Train(**settings | changes)


def execution(**changes: Any) -> Execution:
    return Execution(**{"device": "cpu", "layout": "padded"} | changes)


def counted(counts: Mapping[str, int]) -> SimpleNamespace:
    """Return data of which no more is known than how many targets each role has."""
    return SimpleNamespace(counts=counts, details={}, answers=1, kinds_hash="")
