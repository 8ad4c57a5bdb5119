"""Seconds and bytes of a checkpoint of a Llama of 100 million parameters, on this machine.

python -m benchmarks.checkpoints [--folder DIR] [--tiny]

The model has made one step, so that the optimizer has its moments. Reading counts the check of
every hash and the copy into new memory.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ablate.adapters.optimizers import maker
from ablate.config.schema import Optimizer, Train
from ablate.training import optim
from ablate.training.checkpoints import files
from ablate.training.checkpoints.snapshot import Progress, Underway
from ablate.training.history import Result
from ablate.training.hooks import NO_HOOKS
from ablate.training.room import Room

CPU = torch.device("cpu")
LAYERS, VOCABULARY = "num_hidden_layers", "vocab_size"
SHAPE = {"hidden_size": 768, "intermediate_size": 2048, LAYERS: 12, VOCABULARY: 32000}
TINY = {"hidden_size": 64, "intermediate_size": 128, LAYERS: 2, VOCABULARY: 500}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TIMES = 2


def main() -> None:
    """Print a line for LoRA, full tuning in fp32 and in bf16, and AdamW with moments in 8 bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where checkpoints are written")
    parser.add_argument("--tiny", action="store_true", help="a small model")
    given = parser.parse_args()
    for name, model, kind in arms(TINY if given.tiny else SHAPE):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            print(json.dumps({"arm": name, **measured(model, kind, Path(folder))}), flush=True)


def arms(shape: dict[str, int]) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the name, the model and the optimizer of every arm."""
    yield "lora r16", get_peft_model(llama(shape), LoraConfig(r=16, target_modules=LINEAR)), "adamw"
    yield "full fp32", llama(shape), "adamw"
    yield "full bf16, masters", llama(shape).to(torch.bfloat16), "adamw"
    yield "full bf16, adamw_8bit", llama(shape).to(torch.bfloat16), "adamw_8bit"


def llama(shape: dict[str, int]) -> nn.Module:
    """Return a Llama of random weights with tied embeddings."""
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, tie_word_embeddings=True))


def measured(model: nn.Module, kind: str, folder: Path) -> dict[str, Any]:
    """Return size and seconds of writing and of reading a checkpoint."""
    settings = Train(name="benchmark", lr=1e-4)
    underway = Underway(
        model, [np.arange(4)], NO_HOOKS,
        permute=np.random.default_rng(0), room=Room(None, True), result=Result(),
    )  # fmt: skip
    optimizer = optim.optimizer(model, settings, maker(Optimizer(kind=kind)))
    schedule = optim.schedule(optimizer, settings, steps=10)
    for parameter in optim.trainable(model):
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    writing, reading, size = [], [], 0
    for step in range(1, TIMES + 1):
        began = time.perf_counter()
        tree = underway.snapshot(optimizer, schedule, Progress(0, step, step), CPU)
        size = files.write(tree, folder, step=step)
        writing.append(time.perf_counter() - began)
        began = time.perf_counter()
        files.checked(files.found(folder)[0]).read(CPU)
        reading.append(time.perf_counter() - began)
        files.clear(folder, keep=1)
    return {
        "trained": sum(p.numel() for p in optim.trainable(model)),
        "bytes": size,
        "write_seconds": round(min(writing), 2),
        "read_seconds": round(min(reading), 2),
    }


if __name__ == "__main__":
    main()
