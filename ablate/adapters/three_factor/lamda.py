"""When LaMDA (arXiv 2406.12832) freezes its factor B: column by column, early in a run.

The columns go with the singular values, the largest first (the paper writes B transposed and
freezes its rows). At the end of the share `freeze` of a run all are fixed, and the core alone
trains on.

Letters: D outputs, N inner size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ablate.adapters.method import Options
from ablate.adapters.three_factor.layer import layers
from ablate.streams import Streams
from ablate.training.hooks import Hooks, Moment


def hooks(options: Options, streams: Streams) -> Hooks:
    """Return the hooks that freeze B of every active adapter.

    A frozen column is put back after the step, since momentum would move it on.

    Args:
        options: all of the row's: freeze.
        streams: not used, nothing is drawn.
    """
    kept: dict[nn.Parameter, Tensor] = {}

    def after_backward(moment: Moment) -> None:
        kept.clear()
        for B_DN in _trained_B(moment.model):
            n = frozen_columns(moment.step, moment.steps, options["freeze"], B_DN.shape[1])
            if n == B_DN.shape[1]:
                B_DN.grad = None  # the optimizer passes it over
            elif n and B_DN.grad is not None:
                B_DN.grad[:, :n] = 0
                kept[B_DN] = B_DN.detach()[:, :n].clone()

    @torch.no_grad()
    def after_step(moment: Moment) -> None:
        for B_DN, still in kept.items():
            B_DN[:, : still.shape[1]] = still

    return Hooks(after_backward=after_backward, after_step=after_step)


def _trained_B(model: nn.Module) -> Iterator[nn.Parameter]:
    for _, layer in layers(model):
        for adapter in layer.active_adapters:
            if adapter in layer.factor_B:
                yield layer.factor_B[adapter]


def frozen_columns(step: int, steps: int, freeze: float, columns: int) -> int:
    """Return how many columns of B are fixed in optimizer step `step` (from 0) of `steps`.

    One more after each of `columns` equal parts of the share `freeze` of the run.
    """
    done = step / (freeze * steps)
    return min(columns, int(columns * done + 1e-9))  # 3 / (0.3 x 10) is not to count as below 1
