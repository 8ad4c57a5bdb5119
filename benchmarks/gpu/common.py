"""What the benchmarks share: shapes, rows of Alpaca-like lengths, timing, a JSON line a figure."""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ablate.adapters.lora.forward import lighten
from ablate.config.schema import MASKED_ROLES, Loss, Masking
from ablate.data.tokenise import Labels, Summary, Tokenised
from ablate.objective import Objective, make_objective
from ablate.roles import NAMES, Role

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512},
    "micro": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3,
              "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1024,
              "tie_word_embeddings": True},
    "100m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8,
             "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 32000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000},
}  # fmt: skip
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="the smallest shapes, to try the code")
    parser.add_argument("--out", type=Path, help="also append the lines to this file")
    return parser


def card(device: torch.device) -> str:
    """Return the name of the hardware that a figure belongs to."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def report(out: Path | None, device: torch.device, name: str, **figures: Any) -> None:
    """Print the figures of one measurement as a line of JSON, and append it to `out`."""
    rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in figures.items()}
    line = json.dumps({"name": name, **rounded, "card": card(device), "torch": torch.__version__})
    print(line, flush=True)
    if out:
        with out.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, run: Callable[[], Any], *, repeats: int = 5) -> float:
    """Return the median time of `run` in seconds, after one run that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def peak_gib(device: torch.device) -> float | None:
    """Return the peak of the memory allocated on a GPU in GiB since the last call."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def llama(
    shape: str, device: torch.device, dtype: torch.dtype = torch.float32, **changes: Any
) -> LlamaForCausalLM:
    """Return a Llama of a shape with random weights, the same at every call."""
    config = LlamaConfig(
        **SHAPES[shape], max_position_embeddings=4096, pad_token_id=None, **changes
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    return model.eval()


def with_lora(model: nn.Module, rank: int = 8, *, ours: bool = True) -> nn.Module:
    """Return `model` with LoRA on every linear layer, computed by PEFT unless `ours`."""
    torch.manual_seed(1)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEAR, task_type="CAUSAL_LM")
    adapted: nn.Module = get_peft_model(model, config)
    if ours and next(model.parameters()).device.type == "cuda":
        lighten(adapted)  # as `adapters.build` does
    return adapted


def rows(count: int, vocab: int, *, seed: int = 0, longest: int = 1024) -> Tokenised:
    """Return random rows with the lengths of Alpaca: prompts of 66 +- 25 tokens, answers of 65.

    The answers' lengths are log-normal with the long tail of the real ones.
    """
    draws = np.random.default_rng(seed)
    ids, roles, sizes = [], [], []
    for _ in range(count):
        prompt = int(np.clip(draws.normal(66, 25), 40, 256))
        answer = int(np.clip(draws.lognormal(3.7, 0.95), 2, longest - prompt))
        ids.append(draws.integers(3, vocab, prompt + answer))
        roles += [Role.INSTRUCTION] * prompt + [Role.COMPLETION] * answer
        sizes.append(prompt + answer)
    total = sum(sizes)
    labels = Labels.of(np.array(roles, dtype=np.uint8))
    return Tokenised(
        ids=np.concatenate(ids).astype(np.int32),
        labels=labels,
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        summary=Summary(
            content_hash="benchmark",
            counts={NAMES[r]: int((labels.roles == r).sum()) for r in set(roles)},
            rows=count,
            rows_in=count,
            truncated=0,
            dropped={},
            tokens=total,
            mean_length=total / count,
            max_length=max(sizes),
            largest_id=vocab - 1,
            rg_tokens=None,
            rg_before_truncation=None,
        ),
    )


def objective(plw: float) -> Objective:
    """Return the objective of prompts weighted by `plw`, a mean over weights."""
    weights = {role: "plw" for role in MASKED_ROLES} | {"completion": 1.0}
    return make_objective(Masking(name="none", weights=weights), plw, 1.0, Loss())
