"""Models that stand side by side scored at once, against the same models one after another.

python -m benchmarks.gpu.lanes_scored [--device cpu --tiny]

Log-likelihoods of choices, held-out losses and greedy decoding, of models with LoRA r8 on one base.
One after another: one model is scored and its time taken times their number. What lm-eval does
around that is left out: it is the same for both.
"""

import functools
import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ablate.adapters.lora.lanes import kind
from ablate.evaluate import choices, generate, heldout
from ablate.evaluate.lanes import Lanes, active
from ablate.evaluate.precision import computed_in
from ablate.training.lanes.stack import Stack, shell
from benchmarks.gpu import common
from benchmarks.gpu.evaluate import questions

BATCH = 64
CASES = (  # shape, models, items, held-out rows, tokens generated, precision
    ("1b", 16, 64, 128, 64, "bf16"),
    ("1b", 4, 64, 128, 64, "bf16"),
    ("1b", 8, 64, 128, 64, "fp32"),
    ("micro", 64, 500, 256, 16, "fp32"),
)
CPU_CASES = (("micro", 8, 200, 128, 16, "fp32"), ("micro", 16, 200, 128, 16, "fp32"))
TINY = (("tiny", 4, 8, 16, 8, "fp32"),)
Ask = Callable[[nn.Module], Any]


def asks(case: Any, vocab: int) -> dict[str, tuple[int, str, Ask]]:
    """Return what a model is asked by name: how much of what it is, and the call."""
    _, _, items, rows, new, _ = case
    pairs = questions(items, vocab, longest=80 if vocab < 2000 else 300)
    part = common.rows(rows, vocab, longest=512)
    draws = np.random.default_rng(0)
    prompts = [draws.integers(3, vocab, n).tolist() for n in draws.integers(20, 100, BATCH)]
    return {
        "choices": (
            items, "items/s",
            functools.partial(choices.loglikelihoods, pairs=pairs, batch_size=BATCH),
        ),
        "held-out": (
            int(part.lengths.sum()), "tokens/s",
            functools.partial(heldout.row_losses, tokenised=part, rows=None, batch_size=BATCH),
        ),
        "decoding": (
            BATCH * new, "tokens/s",
            functools.partial(
                generate.answers, prompts=prompts, stops=(), max_new=new, batch_size=BATCH
            ),
        ),
    }  # fmt: skip


def difference(one: Any, other: Any) -> float:
    """Return the largest difference of two results; of tokens the share that is unlike."""
    if isinstance(one, heldout.RowLosses):
        return float(np.abs(one.sums_NR - other.sums_NR).max())
    if isinstance(one[0], tuple):
        return max(abs(a - b) for (a, _), (b, _) in zip(one, other, strict=True))
    return float(np.mean(np.array(one) != np.array(other)))


def moved(model: nn.Module, seed: int) -> nn.Module:
    """Return `model` with an adapter that changes something, as after training."""
    draws = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.01 * torch.randn(parameter.shape, generator=draws).to(parameter)
    return model.eval()


def main() -> None:
    """Measure every case."""
    options = common.arguments(__doc__).parse_args()
    device = torch.device(options.device)
    on_cpu = device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    for case in TINY if options.tiny else CPU_CASES if on_cpu else CASES:
        shape, count, *_, precision = case
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        base = common.llama(shape, device, dtype).requires_grad_(False)
        models = [moved(common.with_lora(shell(base)), seed) for seed in range(count)]
        stack = Stack(base, models, [kind] * count)
        stack.settle()
        standing = [models[number] for number in stack.order]
        for name, (amount, unit, ask) in asks(case, base.config.vocab_size).items():
            found: dict[str, Any] = {}
            for way in ("alone", "alone", "lanes", "lanes"):  # the first of each is not counted
                common.peak_gib(device)
                common.synchronize(device)
                started = clock()
                with computed_in(standing[0], precision):
                    if way == "alone":
                        found[way] = ask(standing[0])
                    else:
                        with active(Lanes(stack.model, standing, precision)):
                            found[way], *_ = [ask(one) for one in standing]
                common.synchronize(device)
                found[f"{way}_s"] = clock() - started
                found[f"{way}_gib"] = common.peak_gib(device)
            common.report(
                options.out, device, f"lanes scored: {name} {shape} x {count}", shape=shape,
                cells=count, precision=precision, unit=unit, alone=amount / found["alone_s"],
                lanes=amount * count / found["lanes_s"],
                times=found["alone_s"] * count / found["lanes_s"], gib_alone=found["alone_gib"],
                gib_lanes=found["lanes_gib"], difference=difference(found["alone"], found["lanes"]),
            )  # fmt: skip
        del base, models, stack, standing, found
        gc.collect()


if __name__ == "__main__":
    main()
