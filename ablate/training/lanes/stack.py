"""The adapters of all lanes on one copy of the base, and their gradients.

Lanes of one form (one kind of part in every layer) share a part in every adapted layer. All trained
numbers of a form lie in one matrix with a row per lane, and so do their gradients. The stacked
tensors of the layers, the tensors of each lane's own model and what each lane's optimizer steps on
are views of it, so each model always holds its own weights.

Letters: N lanes, P trained numbers of a lane, padding included.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ablate.training.lanes.layers import Kind, LaneLinear, LanePart, LaneWhole

PREFIX = "base_model.model."  # PEFT's, before a module's name in the base


def shell(model: nn.Module) -> Any:
    """Return a copy of `model` with modules of its own and the same tensors."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers of a lane's model that train, by their name in the base.

    They are those with an adapter or, where there is none, those with trained tensors of their own.
    """
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    found = found or [(n, m) for n, m in model.named_modules() if _trains(m)]
    return {name.removeprefix(PREFIX): module for name, module in found}


def _trains(module: nn.Module) -> bool:
    return any(tensor.requires_grad for tensor in module.parameters(recurse=False))


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one stacked tensor lies in the rows of its form."""

    layer: str
    name: str  # in the layer's part
    shape: tuple[int, ...]  # of a lane, padded
    start: int

    def of(self, rows_NP: Tensor) -> Tensor:
        """Return the stacked tensor (N, *shape), a view."""
        end = self.start + math.prod(self.shape)
        return rows_NP[:, self.start : end].unflatten(1, self.shape)


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a trained tensor of a lane's model lies in the rows that its optimizer steps on."""

    parameter: nn.Parameter
    row: int  # which of `Form.owned`
    start: int
    shape: tuple[int, ...]  # as stacked, padded
    length: int  # of the first dimension without padding
    turned: bool

    def of(self, rows: Sequence[Tensor]) -> Tensor:
        """Return the tensor's part of `rows`, which have the shapes of `Form.owned`, as a view."""
        end = self.start + math.prod(self.shape)
        piece = rows[self.row].flatten()[self.start : end].unflatten(0, self.shape)[: self.length]
        return piece.T if self.turned else piece


class Form:
    """The lanes of one form: their numbers and gradients, and the views over them.

    Attributes:
        models: of the lanes.
        parts: by the name of the layer.
        owned: of each lane, all its matrices as one row (1, P) and all its vectors as one, each if
            it has any. An optimizer that treats all numbers of a matrix alike may step on these.
    """

    def __init__(self, models: Sequence[nn.Module], kind: Kind) -> None:
        every = [layers(model) for model in models]
        self.models = list(models)
        self.parts = {
            name: kind(layer)[0]([own[name] for own in every]) for name, layer in every[0].items()
        }
        self.slots, self.matrices, size = self._slots(every)
        like = next(parameter for _, parameter in self._trained(0))
        self.rows_NP = torch.zeros(len(models), size, dtype=like.dtype, device=like.device)
        self.grads_NP = torch.zeros_like(self.rows_NP)
        count = (self.matrices > 0) + (size > self.matrices)
        self.owned = [[nn.Parameter(like.new_empty(0)) for _ in range(count)] for _ in models]
        for lane in range(len(models)):
            for parameter, piece, _ in self._views(lane):
                piece.copy_(parameter.detach())
        self._lay()

    def spread(self) -> None:
        """Give the parts their stacked tensors; the gradients of all come back in one piece."""
        leaf_NP = self.rows_NP.detach().requires_grad_()
        leaf_NP.grad = self.grads_NP
        sizes = [math.prod(slot.shape) for slot in self.slots]
        for slot, piece in zip(self.slots, leaf_NP.split(sizes, dim=1), strict=True):
            setattr(self.parts[slot.layer], slot.name, piece.unflatten(1, slot.shape))

    def keep(self, lanes: Sequence[int]) -> None:
        """Take all other lanes out; their models keep their weights."""
        for lane in set(range(len(self.models))) - set(lanes):
            self.release(lane)
        self.models = [self.models[lane] for lane in lanes]
        self.owned = [self.owned[lane] for lane in lanes]
        self.rows_NP = self.rows_NP[list(lanes)]
        self.grads_NP = torch.zeros_like(self.rows_NP)
        for part in self.parts.values():
            part.keep(lanes)
        self._lay()

    def release(self, lane: int) -> None:
        """Give the model of a lane storage of its own for its trained weights."""
        for parameter, piece, _ in self._views(lane):
            parameter.data = piece.clone(memory_format=torch.contiguous_format)
            parameter.grad = None

    def places(self, lane: int) -> list[RowPlace]:
        """Return where each trained tensor of a lane's model lies in what `owned` has of it."""
        found = []
        for slot, parameter in self._trained(lane):
            part = self.parts[slot.layer]
            vector = slot.start >= self.matrices
            turned = slot.name in part.transposed
            length = len(_turned(parameter, part, slot.name))
            start = slot.start - (self.matrices if vector else 0)
            row = len(self.owned[lane]) - 1 if vector else 0
            found.append(RowPlace(parameter, row, start, slot.shape, length, turned))
        return found

    def settle(self) -> None:
        """Give the parts copies of the numbers, without gradients; each model owns its weights."""
        for lane in range(len(self.models)):
            self.release(lane)
        self.grads_NP = self.grads_NP[:, :0]
        for slot in self.slots:
            setattr(self.parts[slot.layer], slot.name, slot.of(self.rows_NP))

    def _slots(self, every: Sequence[dict[str, Any]]) -> tuple[list[Slot], int, int]:
        """Return the slots, matrices before vectors, the size of the matrices and of a row."""
        shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        for layer, part in self.parts.items():
            for own in every:
                for name, tensor in part.trained(own[layer]).items():
                    shape = tuple(_turned(tensor, part, name).shape)
                    before = shapes.get((layer, name), shape)
                    shapes[layer, name] = tuple(map(max, before, shape))
        slots, start, matrices = [], 0, 0
        for (layer, name), shape in sorted(shapes.items(), key=lambda item: len(item[1]) < 2):
            slots.append(Slot(layer, name, shape, start))
            start += math.prod(shape)
            matrices = start if len(shape) > 1 else matrices
        return slots, matrices, start

    def _trained(self, lane: int) -> Iterator[tuple[Slot, nn.Parameter]]:
        own = layers(self.models[lane])
        for slot in self.slots:
            yield slot, self.parts[slot.layer].trained(own[slot.layer])[slot.name]

    def _views(self, lane: int) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        """Yield each trained tensor of a lane's model, and its place in the numbers and gradients.

        Only the first dimension of a stacked tensor is padded, so each place is dense.
        """
        for slot, parameter in self._trained(lane):
            part = self.parts[slot.layer]
            rows = len(_turned(parameter, part, slot.name))
            pieces = (slot.of(of)[lane, :rows] for of in (self.rows_NP, self.grads_NP))
            number, gradient = (_turned(piece, part, slot.name) for piece in pieces)
            yield parameter, number, gradient

    def _lay(self) -> None:
        """Lay the models' tensors and `owned` over the two matrices."""
        for lane, owned in enumerate(self.owned):
            for parameter, number, gradient in self._views(lane):
                parameter.data, parameter.grad = number, gradient
            numbers, gradients = (
                [
                    piece
                    for piece in (of[lane, : self.matrices][None], of[lane, self.matrices :])
                    if piece.numel()
                ]
                for of in (self.rows_NP, self.grads_NP)
            )
            for parameter, number, gradient in zip(owned, numbers, gradients, strict=True):
                parameter.grad, parameter.data = None, number
                parameter.grad = gradient


def _turned(tensor: Tensor, part: LanePart, name: str) -> Tensor:
    """Return a lane's tensor as it is stacked, or a stacked one as the lane has it."""
    return tensor.T if name in part.transposed else tensor


class Stack:
    """One copy of the base with the adapters of all lanes.

    Attributes:
        model: the base's modules, on the base's own tensors; its rows are those of all lanes.
        order: the number of the model that each lane belongs to.
    """

    def __init__(self, base: nn.Module, models: Sequence[nn.Module], kinds: Sequence[Kind]) -> None:
        """Stack the adapters of `models`, which were built on `shell`s of `base`.

        Raises:
            ValueError: the models do not adapt the same layers.
        """
        forms = [
            {name: kind(layer) for name, layer in layers(model).items()}
            for model, kind in zip(models, kinds, strict=True)
        ]
        self.order = sorted(range(len(models)), key=lambda number: repr(forms[number]))
        self.forms = [
            Form([models[number] for number in numbers], kinds[numbers[0]])
            for numbers in (list(g) for _, g in groupby(self.order, key=forms.__getitem__))
        ]
        self.model = shell(base)
        self.model.requires_grad_(False)
        names = {tuple(one.parts) for one in self.forms}
        if len(names) > 1:
            raise ValueError("the adapters of these models do not change the same layers")
        for name in next(iter(names)):
            place, _, leaf = name.rpartition(".")
            parent = self.model.get_submodule(place)
            parts = [one.parts[name] for one in self.forms]
            whole = LaneWhole(parts[0]) if parts[0].whole and len(parts) == 1 else None
            setattr(parent, leaf, whole or LaneLinear(getattr(parent, leaf), parts))

    def spread(self) -> None:
        """Lay the current numbers into the layers; needed before every forward pass."""
        for one in self.forms:
            one.spread()

    def owned(self) -> list[list[nn.Parameter]]:
        """Return what an elementwise optimizer steps on, of each lane."""
        return [parameters for one in self.forms for parameters in one.owned]

    def places(self) -> list[list[RowPlace]]:
        """Return where each trained tensor of a lane's model lies in its part of `owned`."""
        return [one.places(lane) for one in self.forms for lane in range(len(one.models))]

    def keep(self, lanes: Sequence[int]) -> None:
        """Take all other lanes out; their models keep their weights."""
        self.order = [self.order[lane] for lane in lanes]
        start = 0
        for one in self.forms:
            mine = range(start, start + len(one.models))
            start += len(one.models)
            one.keep([lane - mine.start for lane in lanes if lane in mine])
        self.forms = [one for one in self.forms if one.models]
        for layer in (m for m in self.model.modules() if isinstance(m, LaneLinear)):
            layer.keep()

    def release(self) -> None:
        """Give every lane's model storage of its own."""
        self.keep([])

    def settle(self) -> None:
        """Let the stacked model compute with copies of the current numbers, without gradients."""
        for one in self.forms:
            one.settle()

    @torch.no_grad()
    def clip(self, limits: Sequence[float]) -> Tensor:
        """Return each lane's gradient norm (N,), and scale its gradient to its limit if larger.

        As `torch.nn.utils.clip_grad_norm_` does for the parameters of one model.
        """
        norms = [one.grads_NP.norm(dim=1) for one in self.forms]
        limit_N = norms[0].new_tensor(limits)
        for one, norm, limit in zip(
            self.forms, norms, limit_N.split([*map(len, norms)]), strict=True
        ):
            one.grads_NP *= (limit / (norm + 1e-6)).clamp(max=1.0)[:, None]
        return torch.cat(norms)

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for one in self.forms:
            one.grads_NP.zero_()
