"""A micro-batch with its targets' final weights, and its part of the step's divisor.

They are u_t and W of `training.loss`, known from the data alone.

Shapes: B rows, L positions, K targets with a weight, E examples.
"""

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ablate.data.batches import Batch
from ablate.models.packed import Bounds
from ablate.objective import Objective


@dataclass(frozen=True, slots=True)
class Weighed:
    """A micro-batch with the targets that have a weight: all inputs of a forward pass."""

    ids_BL: Tensor
    positions_BL: (
        Tensor | None
    )  # positions that restart at each example; None if each row is one example
    index_K: Tensor  # into the flattened (B, L): the position that predicts target k
    targets_K: Tensor
    weights_K: Tensor  # u_t in the module's formula
    roles_K: Tensor
    divisor: float  # this micro-batch's part of W
    supervised: float  # sum of the objective's weights before any division
    tokens: int  # without padding
    examples: int
    lengths: tuple[int, ...]  # of its examples, in order
    bounds: Bounds | None = None  # of its examples, where they are packed

    @property
    def sums_C(self) -> Tensor:
        """The additive counts (divisor, supervised weight, tokens, examples) (4,)."""
        counts = (self.divisor, self.supervised, self.tokens, self.examples)
        return torch.tensor(counts, dtype=torch.float64)

    def silent(self) -> "Weighed":
        """Return a copy without targets, for a device that has no row in this step."""
        nothing = self.index_K[:0]
        return replace(
            self,
            index_K=nothing,
            targets_K=nothing,
            weights_K=self.weights_K[:0],
            roles_K=nothing,
            divisor=0.0,
            supervised=0.0,
            tokens=0,
            examples=0,
        )

    def to(self, device: torch.device) -> "Weighed":
        """Return a copy on `device`; what is sent to a GPU is sent without waiting for it."""
        move = functools.partial(sent, device=device)
        return replace(
            self,
            ids_BL=move(self.ids_BL),
            positions_BL=None if self.positions_BL is None else move(self.positions_BL),
            index_K=move(self.index_K),
            targets_K=move(self.targets_K),
            weights_K=move(self.weights_K),
            roles_K=move(self.roles_K),
            bounds=None if self.bounds is None else self.bounds.moved(move),
        )


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on `device`; to a GPU through pinned memory, which nothing waits for."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def weigh(batch: Batch, objective: Objective) -> Weighed:
    """Return `batch` with its targets' final weights and its part of the step's divisor.

    Scopes, with n and d the sums of `num * loss` and of `den` over a set of targets:

        batch       sum n / sum d                       over the whole optimizer step
        example     mean over examples of n_i / d_i     (IM's released code)
        microbatch  mean over micro-batches of n_m / d_m    (older trainers)

    Under the normaliser `examples`, d is the number of examples. An example or micro-batch whose
    divisor is zero has no target with a weight: it adds zero and still counts in the mean.
    """
    num_BL, divisor_E = batch.num_BL.double(), _divisors(batch, objective)
    if objective.scope == "example":
        weights_BL = num_BL / _one_if_zero(divisor_E)[batch.example_BL]
        return _gathered(batch, weights_BL, float(batch.examples))
    if objective.scope == "microbatch":
        return _gathered(batch, num_BL / _one_if_zero(divisor_E.sum()), 1.0)
    return _gathered(batch, num_BL, float(divisor_E.sum()))


def _divisors(batch: Batch, objective: Objective) -> Tensor:
    """Return each example's share of the divisor (E,)."""
    if objective.per_example:
        return torch.ones(batch.examples, dtype=torch.float64)
    shares_E = torch.zeros(batch.examples, dtype=torch.float64)
    return shares_E.index_add_(0, batch.example_BL.flatten(), batch.den_BL.double().flatten())


def _one_if_zero(sums: Tensor) -> Tensor:
    return torch.where(sums == 0, torch.ones_like(sums), sums)


def _gathered(batch: Batch, weights_BL: Tensor, divisor: float) -> Weighed:
    target_K = weights_BL.flatten().nonzero().squeeze(1)
    lengths = tuple(batch.lengths_E.tolist())
    return Weighed(
        ids_BL=batch.ids_BL,
        positions_BL=batch.positions_BL,
        index_K=target_K - 1,  # position 0 never has a weight, so target - 1 is in the same row
        targets_K=batch.ids_BL.flatten()[target_K],
        weights_K=weights_BL.flatten()[target_K],
        roles_K=batch.roles_BL.flatten()[target_K].long(),
        divisor=divisor,
        supervised=float(batch.num_BL.double().sum()),
        tokens=batch.tokens,
        examples=batch.examples,
        lengths=lengths,
        bounds=None if batch.positions_BL is None else Bounds.of(lengths),
    )
