"""The memory that a plan says a GPU needs, against what torch allocates there."""

import dataclasses

import pytest
import torch

from ablate.objective import objective_of
from ablate.streams import Streams
from ablate.training.loop import train
from tests import memory, toys
from tests.levels import cell

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
LLAMA_100M = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12,
              "num_key_value_heads": 12, "vocab_size": 32_000}  # fmt: skip


@pytest.mark.parametrize("on", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(
    ("level", "base", "precision"),
    [("full", "fp32", "bf16"), ("full", "bf16", "bf16"), ("lora", "bf16", "bf16"),
     ("lora", "fp32", "fp32")],
)  # fmt: skip
def test_memory_is_what_is_allocated(level, base, precision, layout, on):
    asked = dataclasses.replace(
        cell(level),
        base_precision=base,
        train=toys.train_settings(
            batch_size=16, max_steps=2, precision=precision, max_length=512, lr=1e-5
        ),
        execution=toys.execution(
            device="cuda", layout=layout, micro_batch_size=8, gradient_checkpointing=on
        ),
    )
    data = memory.rows([512] * 16, vocabulary=32_000)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    module, about = memory.llama(asked, 12, device="cuda", **LLAMA_100M)
    streams = Streams(0)
    train(
        module, data, asked.train, objective=objective_of(asked), streams=streams,
        execution=asked.execution,
    )  # fmt: skip
    peak = torch.cuda.max_memory_allocated() - before
    said = memory.planned(asked, data, about)
    assert sum(said.values()) == pytest.approx(peak, rel=0.25), said
