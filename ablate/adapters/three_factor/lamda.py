"""LaMDA's schedule (arXiv 2406.12832), which freezes its factor B column by column.

Columns are frozen in the order of their singular values, the largest first (the paper writes B
transposed and freezes its rows). After the fraction `freeze` of a run all are frozen, and only the
core still trains.

Letters: D outputs, N inner size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ablate.adapters.options import Options
from ablate.adapters.three_factor.start import layers
from ablate.streams import Streams
from ablate.training.hooks import Hooks, StepContext


def hooks(options: Options, streams: Streams) -> Hooks:
    """Return the hooks that freeze B of every active adapter.

    A frozen column is put back after the step, since contextum would move it on.

    Args:
        options: of the method; `freeze` is read.
        streams: not used, nothing is drawn.
    """
    frozen: dict[nn.Parameter, Tensor] = {}

    def after_backward(context: StepContext) -> None:
        frozen.clear()
        for B_DN in _trained_B(context.model):
            n = frozen_columns(context.step, context.steps, options["freeze"], B_DN.shape[1])
            if n == B_DN.shape[1]:
                B_DN.grad = None  # the optimizer skips a parameter without a gradient
            elif n and B_DN.grad is not None:
                B_DN.grad[:, :n] = 0
                frozen[B_DN] = B_DN.detach()[:, :n].clone()

    @torch.no_grad()
    def after_step(context: StepContext) -> None:
        for B_DN, columns_DX in frozen.items():
            B_DN[:, : columns_DX.shape[1]] = columns_DX

    return Hooks(after_backward=after_backward, after_step=after_step)


def _trained_B(model: nn.Module) -> Iterator[nn.Parameter]:
    for _, layer in layers(model):
        for adapter in layer.active_adapters:
            if adapter in layer.factor_B:
                yield layer.factor_B[adapter]


def frozen_columns(step: int, steps: int, freeze: float, columns: int) -> int:
    """Return how many columns of B are frozen in optimizer step `step` (from 0) of `steps`.

    One more after each of `columns` equal parts of the first fraction `freeze` of the run.
    """
    done = step / (freeze * steps)
    return min(columns, int(columns * done + 1e-9))  # 3 / (0.3 x 10) must count as 1
