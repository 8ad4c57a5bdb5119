"""NEFTune: embedded tokens + U(-1, 1) alpha / sqrt(L D).

Shapes: B rows, L positions, T tokens without padding, D embedding size, E examples.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ablate.config.schema import Cell
from ablate.streams import Streams
from ablate.training.distributed import process
from ablate.training.hooks import Hooks, StepContext
from ablate.training.weighed import Weighed


@contextmanager
def neftune(model: Any, cell: Cell, streams: Streams) -> Iterator[Hooks]:
    """Yield hooks that add NEFTune's noise (arXiv 2310.05914, algorithm 1) to embedded tokens.

    L is each example's own length. The paper's code takes the length of the padded row, with which
    the noise of an example would depend on the others in its batch.

    Args:
        model: the base with its adapter.
        cell: the cell; `neftune` (alpha) of its regulariser is read.
        streams: the noise draws from the stream "neftune" of each process.
    """
    embedding = model.get_input_embeddings()
    generator = streams.torch("neftune", process())
    pending: list[Tensor] = []

    def before_forward(context: StepContext) -> None:
        D = embedding.weight.shape[1]
        pending[:] = [noise(context.work, D, cell.regulariser.neftune, generator)]

    def add(module: nn.Module, args: Any, output_BLD: Tensor) -> Tensor | None:
        if not (module.training and pending):
            return None
        return output_BLD + pending.pop().to(output_BLD)

    handle = embedding.register_forward_hook(add)
    try:
        yield Hooks(before_forward=before_forward)
    finally:
        handle.remove()


def noise(work: Weighed, D: int, alpha: float, generator: Generator) -> Tensor:
    """Return the noise (B, L, D) of a micro-batch: U(-1, 1) alpha / sqrt(L D), zero on padding.

    Examples are drawn one after the other, so the noise of an example does not depend on how a step
    is split or laid out.
    """
    lengths_E = torch.tensor(work.lengths)
    noise_TD = torch.empty(int(lengths_E.sum()), D).uniform_(-1, 1, generator=generator)
    noise_TD *= alpha / (lengths_E * D).sqrt().repeat_interleave(lengths_E)[:, None]
    if work.positions_BL is not None:
        return noise_TD[None]
    noise_BLD = torch.zeros(*work.ids_BL.shape, D)
    noise_BLD[torch.arange(noise_BLD.shape[1]) < lengths_E[:, None]] = noise_TD
    return noise_BLD
