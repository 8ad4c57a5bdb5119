"""The output layer and its loss: all logits, our tiles, and Liger's kernel; time and memory.

    python -m benchmarks.gpu.head [--out FILE]            # needs liger-kernel>=0.8.2 for its lines
    python -m benchmarks.gpu.head --device cpu [--tiny]   # a smaller shape, float32

Forward and backward pass of a weighted loss with random weights in bfloat16: seconds (median), the
most memory beside the inputs and, without the gradients that every way returns, `extra_gib`. A head
that trains and a frozen one; all targets and the tenth that masked prompts leave over.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.training import head, head_terms
from ablate.training.loss import token_losses
from benchmarks.gpu import common

Run = Callable[[], Tensor]  # returns the weighted sum
SHAPES = {"cuda": (4096, 128_000, 2048), "cpu": (1024, 16_000, 512), "tiny": (96, 512, 32)}
ROWS = (256, 512, 1024, 2048)


@dataclass
class Inputs:
    """Hidden states and head as leaves, targets and weights."""

    hidden_KD: Tensor
    weight_VD: Tensor
    targets_K: Tensor
    weights_K: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        """Return what gets a gradient."""
        return [t for t in (self.hidden_KD, self.weight_VD) if t.requires_grad]


def main() -> None:
    """Measure every way on the shape of the device."""
    given = common.arguments(__doc__).parse_args()
    device = torch.device(given.device)
    targets, vocabulary, width = SHAPES["tiny" if given.tiny else given.device]
    for trains in (True, False):
        for count in (targets, targets // 10):
            inputs = made(device, (count, vocabulary, width), trains=trains)
            case = {"targets": count, "vocabulary": vocabulary, "width": width, "trains": trains}
            for name, run in ways(inputs, device).items():
                try:
                    figures = measured(device, inputs, run)
                except Exception as error:
                    figures = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
                common.report(given.out, device, f"head {name}", **case, **figures)


def made(device: torch.device, shape: tuple[int, int, int], *, trains: bool) -> Inputs:
    """Return random inputs: logits of unit variance, weights between 0 and 1."""
    targets, vocabulary, width = shape
    draws = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def normal(rows: int, scale: float) -> Tensor:
        drawn = torch.randn(rows, width, generator=draws, device=device)
        return (drawn * scale).to(dtype)

    return Inputs(
        normal(targets, 1.0).requires_grad_(),
        normal(vocabulary, width**-0.5).requires_grad_(trains),
        torch.randint(vocabulary, (targets,), generator=draws, device=device),
        torch.rand(targets, generator=draws, device=device),
    )


def ways(inputs: Inputs, device: torch.device) -> dict[str, Run]:
    """Return the ways to the same weighted sum by name."""
    found: dict[str, Run] = {"all logits": lambda: all_logits(inputs)}
    rows = [r for r in ROWS if r < 2 * len(inputs.hidden_KD)]
    for kernel in ("triton", "torch") if device.type == "cuda" else ("torch",):
        found |= {f"tiles {kernel} {r}": tiles(inputs, kernel, r) for r in rows}
        found[f"tiles {kernel} default"] = tiles(inputs, kernel, None)
    if device.type == "cuda":
        found |= {f"liger x{n}": liger(inputs, n) for n in (1, 8)}
    return found


def all_logits(inputs: Inputs) -> Tensor:
    """Return the sum from all logits, as `training.loss` makes it where they are few."""
    logits_KV = F.linear(inputs.hidden_KD, inputs.weight_VD)
    return (token_losses(logits_KV, inputs.targets_K) * inputs.weights_K).sum()


def tiles(inputs: Inputs, kernel: str, rows: int | None) -> Run:
    """Return our way with tiles of so many rows."""

    def run() -> Tensor:
        head_terms.TRITON_ON = ("cuda",) if kernel == "triton" else ()
        return head.weighted_sum(
            inputs.hidden_KD,
            head_terms.Head(inputs.weight_VD),
            term=head_terms.CrossEntropy(inputs.targets_K),
            weights_K=inputs.weights_K,
            rows=rows,
        ).total

    return run


def liger(inputs: Inputs, chunk: int) -> Run:
    """Return Liger's way: losses per token (right from 0.8.2 on), weighted afterwards."""

    def run() -> Tensor:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        losses_K: Tensor = LigerFusedLinearCrossEntropyFunction.apply(
            inputs.hidden_KD, inputs.weight_VD, inputs.targets_K, None, None, -100, 0.0, 0.0,
            "none", None, False, None, False, False, False, None, None, chunk,
        )[0]  # fmt: skip
        return (losses_K * inputs.weights_K).sum()

    return run


def measured(device: torch.device, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Return seconds, memory in GiB and the sum itself, which all ways share."""

    def step() -> float:
        total = run()
        gradients = torch.autograd.grad(total, inputs.leaves)
        del gradients
        return total.detach()  # type: ignore[return-value]

    total = float(step())
    figures: dict[str, Any] = {"seconds": common.seconds(device, step, repeats=7)}
    figures["peak_gib"] = peak(device, step)
    returned = sum(t.numel() * t.element_size() for t in inputs.leaves)
    return figures | {"extra_gib": figures["peak_gib"] - returned / 2**30, "sum": total}


def peak(device: torch.device, step: Callable[[], Any]) -> float:
    """Return the most memory in GiB that `step` takes beside what is there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated(device)
        common.peak_gib(device)
        step()
        torch.cuda.synchronize()
        return (common.peak_gib(device) or 0.0) - before / 2**30
    process, stop = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not stop.is_set():
            most = max(most, process.memory_info().rss)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    stop.set()
    watcher.join()
    return (most - before) / 2**30


if __name__ == "__main__":
    main()
