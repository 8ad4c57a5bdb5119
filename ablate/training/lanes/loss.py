"""The token losses of all lanes from one forward pass, summed by lane.

Letters: N lanes, B rows of a lane, L positions, K targets with a weight of all lanes, R roles,
S = 1 + 3 R sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.objective import Objective
from ablate.roles import Role
from ablate.training.loss import target_losses
from ablate.training.weighed import Weighed


@dataclass(frozen=True, slots=True)
class Stacked:
    """The micro-batches of all lanes as one, rows of lane 0 first."""

    work: Weighed  # its weights are divided by the W of their lane
    place_K: Tensor  # of each target: its lane x `most` + its number in the lane
    lanes: int
    most: int  # targets of a lane

    def to(self, device: torch.device) -> "Stacked":
        """Return a copy on `device`."""
        return replace(self, work=self.work.to(device), place_K=self.place_K.to(device))


def stacked(works: Sequence[Weighed], divisors: Sequence[float]) -> Stacked:
    """Return the padded micro-batches of all lanes as one, given the W of each lane's step."""
    rows = max(work.ids_BL.shape[0] for work in works)
    length = max(work.ids_BL.shape[1] for work in works)
    most = max(1, *(len(work.index_K) for work in works))
    ids = works[0].ids_BL.new_zeros(len(works), rows, length)
    indices, places = [], []
    for lane, work in enumerate(works):
        own_rows, own_length = work.ids_BL.shape
        ids[lane, :own_rows, :own_length] = work.ids_BL
        row_K, position_K = work.index_K // own_length, work.index_K % own_length
        indices.append((lane * rows + row_K) * length + position_K)
        places.append(lane * most + torch.arange(len(work.index_K)))
    weights = (work.weights_K / divisor for work, divisor in zip(works, divisors, strict=True))
    together = replace(
        works[0],
        ids_BL=ids.flatten(0, 1),
        index_K=torch.cat(indices),
        targets_K=torch.cat([work.targets_K for work in works]),
        weights_K=torch.cat(tuple(weights)),
        roles_K=torch.cat([work.roles_K for work in works]),
    )
    return Stacked(together, torch.cat(places), len(works), most)


def lane_losses(
    model: Any, step: Stacked, objective: Objective, *, with_grad_norm: bool
) -> tuple[Tensor, Tensor]:
    """Return the sum of all lanes' losses (), differentiable, and of each its sums (N, S).

    The sums are those of `TokenLoss.sums_S`, their weights divided by W. Of the objective, any
    lane's, label smoothing and token rule are read, which lanes share.
    """
    work = step.work
    found = target_losses(model, work, objective, with_norms=with_grad_norm)
    plain_K, norm_K = found.losses_K, found.norms_K
    weights_K = work.weights_K.to(plain_K.dtype)
    role_KR = F.one_hot(work.roles_K, len(Role)).to(plain_K.dtype)
    columns = (
        (found.values_K * weights_K)[:, None],
        plain_K[:, None] * role_KR,
        role_KR,
        (weights_K * norm_K)[:, None] * role_KR,
    )
    return found.total, _by_lane(torch.cat(columns, 1).double(), step)


def _by_lane(values_KS: Tensor, step: Stacked) -> Tensor:
    """Return the sums (N, S) over each lane's targets, always added in one order."""
    spread = values_KS.new_zeros(step.lanes * step.most, values_KS.shape[1])
    spread[step.place_K] = values_KS
    return spread.unflatten(0, (step.lanes, -1)).sum(1)
