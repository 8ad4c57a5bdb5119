"""The first batches of a run, and the base model's gradients and activations on them.

Initialisations that look at data (EVA, CorDA, LoRA-GA, LoRA-SB, VeLoRA, aLoRA) get the rows that
the run trains on first, in its own order and with its own weighted loss, and no others. Everything
runs without dropout and leaves the model unchanged; an adapter whose change is zero may be on it.
No result depends on how a step is split into micro-batches.

Shapes: B rows, L positions, N examples, D outputs and K inputs of a matrix.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ablate.config.schema import Cell
from ablate.data import batches
from ablate.data.batches import Batch
from ablate.data.specials import shared
from ablate.data.tokenise import Tokenised
from ablate.errors import UserError
from ablate.objective import Objective, objective_of
from ablate.roles import Role
from ablate.streams import Streams
from ablate.training.loss import TokenLossModel
from ablate.training.optim import warmup_steps
from ablate.training.weighed import weigh

BATCHES = 8  # number of batches for methods without an option for it


class Calibration:
    """The first batches of a cell's run, and the base model's gradients and activations on them."""

    def __init__(
        self, model: nn.Module, data: Tokenised | None, cell: Cell, *, streams: Streams
    ) -> None:
        self.model = model
        self._data, self._cell, self._streams = data, cell, streams

    @property
    def data(self) -> Tokenised:
        """The rows that the cell trains on.

        Raises:
            UserError: they were not given.
        """
        if self._data is None:
            raise UserError(
                f"adapter={self._cell.adapter.name} init={self._cell.init.name}: starts from the "
                "data that it trains on, which were not given"
            )
        return self._data

    @functools.cached_property
    def _objective(self) -> Objective:
        return objective_of(self._cell)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def batches(self, count: int, *, whole: bool = True) -> list[list[Batch]]:
        """Return the micro-batches of each of the first `count` steps, fewer if the run is shorter.

        Rows are padded. With `whole` each step is one micro-batch, else it is split as in training.
        """
        cell = self._cell
        steps = batches.order(self.data, train=cell.train, generator=self._streams.numpy("order"))
        execution = replace(cell.execution, layout="padded")
        if whole:
            execution = replace(execution, micro_batch_size=None, micro_batch_tokens=None)
        permute = self._streams.numpy("permute")
        return [
            batches.micro_batches(
                self.data,
                rows,
                objective=self._objective,
                execution=execution,
                permute_generator=permute,
            )
            for rows in steps[:count]
        ]

    def first_rate(self) -> float:
        """Return the run's first learning rate above zero: the peak over the warm-up steps."""
        train = self._cell.train
        steps = batches.order(self.data, train=train, generator=self._streams.numpy("order"))
        return float(train.lr) / max(1, warmup_steps(train, len(steps)))

    def examples(self, count: int) -> Iterator[Tensor]:
        """Yield the ids (1, L) of every row of the first `count` batches, without padding."""
        for (batch,) in self.batches(count):
            for ids_L, length in zip(batch.ids_BL, batch.lengths_E.tolist(), strict=True):
                yield ids_L[None, :length].to(self._device)

    # --- gradients

    def backward(self, count: int, *, times: float = 1.0) -> None:
        """Accumulate the gradient of `times` the mean loss of the first `count` batches.

        It is added to `grad` of every parameter that requires a gradient.
        """
        model = TokenLossModel(self.model, self._objective)
        steps = self.batches(count, whole=False)
        with evaluating(self.model), torch.enable_grad():
            for step in steps:
                works = [weigh(part, self._objective) for part in step]
                divisor = sum(work.divisor for work in works) or 1.0
                for work in works:
                    loss = model(work.to(self._device))
                    (loss.total * (times / (divisor * len(steps)))).backward()

    def passes(self, count: int) -> int:
        """Return the number of forward passes that `backward` makes."""
        return sum(len(step) for step in self.batches(count, whole=False))

    def gradients(self, names: Sequence[str], count: int = BATCHES) -> dict[str, Tensor]:
        """Return the gradient (D, K) of the mean loss in the weight of each module in `names`."""
        modules = {name: _base_layer(self.model.get_submodule(name)) for name in names}
        with requiring_grad(self.model, [module.weight for module in modules.values()]):
            self.backward(count)
            found = {name: _pop_gradient(module.weight) for name, module in modules.items()}
        return {
            name: gradient.T.contiguous() if isinstance(modules[name], Conv1D) else gradient
            for name, gradient in found.items()
        }

    # --- inputs

    @torch.no_grad()
    def mean_inputs(self, names: Sequence[str], count: int) -> dict[str, Tensor]:
        """Return the mean input (K,) of each module over all tokens, without padding."""
        sums: dict[str, Tensor] = {}
        tokens = 0

        def add(name: str, real_BL: Tensor, _module: nn.Module, args: tuple[Any, ...]) -> None:
            sums[name] = sums.get(name, torch.zeros(())) + args[0][real_BL].double().sum(0).cpu()

        for batch in itertools.chain(*self.batches(count, whole=False)):
            real_BL = (batch.roles_BL != Role.PAD).to(self._device)
            tokens += int(real_BL.sum())
            handles = [
                self.model.get_submodule(name).register_forward_pre_hook(
                    functools.partial(add, name, real_BL)
                )
                for name in names
            ]
            with evaluating(self.model), without_logits(self.model):
                self.model(input_ids=batch.ids_BL.to(self._device), use_cache=False)
            for handle in handles:
                handle.remove()
        return {name: total / tokens for name, total in sums.items()}

    # --- tokens

    def invocation(self) -> list[int]:
        """Return the tokens right before every answer: the end of the template.

        Raises:
            UserError: the rows have no common tokens there, or several answers.
        """
        common: list[int] | None = None
        for row in range(len(self.data)):
            ending = _template_ending(*self.data.row(row))
            size = len(ending) if common is None else shared(common[::-1], ending[::-1])
            common = ending[len(ending) - size :]
        if not common:
            raise UserError(
                f"adapter={self._cell.adapter.name}: is active from the template's last words "
                "before an answer on, and the rows of this data set have none in common; use "
                "dataset.template=alpaca or chat"
            )
        return common


def _template_ending(ids_L: np.ndarray, roles_L: np.ndarray) -> list[int]:
    """Return the template's tokens directly before a row's answer."""
    answer = roles_L == Role.COMPLETION
    starts = np.flatnonzero(answer & ~np.roll(answer, 1))
    if len(starts) > 1:
        raise UserError(
            "dataset.turns=all: this adapter is active for the last answer of a row only, and rows "
            "have several; use dataset.turns=last"
        )
    if not len(starts):
        return []
    template = np.isin(roles_L, (Role.SPECIAL, Role.BOILERPLATE))
    before = np.flatnonzero(~template[: starts[0]])
    first = before[-1] + 1 if len(before) else 0
    return [int(token) for token in ids_L[first : starts[0]]]


def _base_layer(module: Any) -> Any:
    """Return the base's layer of a module that may carry an adapter."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _pop_gradient(weight: nn.Parameter) -> Tensor:
    """Return the gradient of a weight, zero if there is none, and clear it."""
    gradient = weight.grad
    weight.grad = None
    return torch.zeros_like(weight) if gradient is None else gradient


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block with `model` in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def without_logits(model: Any) -> Iterator[None]:
    """Run a block in which `model` computes the logits of one position alone: none is needed."""
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][:1, :1], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def requiring_grad(model: nn.Module, chosen: Sequence[nn.Parameter]) -> Iterator[None]:
    """Run a block in which the given weights of `model` require a gradient, and no others."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    for weight in chosen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
