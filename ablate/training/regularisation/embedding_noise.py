"""NEFTune: embedded tokens + U(-1, 1) alpha / sqrt(L D).

Shapes: B rows, L positions, X all of them, T tokens without padding, D embedding size, E examples.
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
        streams: the noise draws from the stream "neftune" of each process, where the embedding is:
            a GPU draws other numbers than a CPU, the same ones in every run.
    """
    embedding = model.get_input_embeddings()
    device = embedding.weight.device
    generator = torch.Generator(device).manual_seed(streams.seed("neftune", process()))
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
        yield Hooks(before_forward=before_forward, draws=(generator,))
    finally:
        handle.remove()


def noise(work: Weighed, D: int, alpha: float, generator: Generator) -> Tensor:
    """Return the noise (B, L, D) of a micro-batch: U(-1, 1) alpha / sqrt(L D), zero on padding.

    It is drawn on the generator's device. Examples are drawn one after the other, so the noise of
    an example does not depend on how a step is split or laid out.
    """
    device, lengths_E = generator.device, torch.tensor(work.lengths)
    size_T1 = (alpha / (lengths_E * D).sqrt().repeat_interleave(lengths_E))[:, None]
    noise_TD = torch.empty(len(size_T1), D, device=device).uniform_(-1, 1, generator=generator)
    noise_TD *= size_T1.to(device, non_blocking=True)
    if work.positions_BL is not None:
        return noise_TD[None]
    B, L = work.ids_BL.shape
    real_T = (torch.arange(L) < lengths_E[:, None]).flatten().nonzero()[:, 0]
    noise_XD = torch.zeros(B * L, D, device=device)
    noise_XD.index_copy_(0, real_T.to(device, non_blocking=True), noise_TD)
    return noise_XD.view(B, L, D)
