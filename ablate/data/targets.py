"""The weight of every target token of a row under a cell's objective."""

from typing import Any

import numpy as np

from ablate.data.tokenise import Labels
from ablate.objective import Objective
from ablate.roles import Role

ENDS = {"first": (0,), "last": (-1,)}


def row_generator(root: np.random.Generator, row: int) -> np.random.Generator:
    """Return the generator of the placebo's draws for a row, given by the root's seed and the row.

    Earlier draws from `root` do not matter, so epoch, layout and PLW change nothing.
    """
    seeds: Any = root.bit_generator.seed_seq
    child = np.random.SeedSequence(seeds.entropy, spawn_key=(*seeds.spawn_key, row))
    return np.random.Generator(np.random.PCG64(child))


def row_weights(
    labels: Labels, objective: Objective, *, row: int, permute: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return numerator and divisor weight of predicting each token of a row, float32 (L,) each.

    The first token is never a target, in any mode. Under `first_header_only` (the code released
    with arXiv 2405.14394, whose search finds the first header only) the run of `special`
    tokens that starts the row has weight 0 in both, as ignored labels have there.

    Args:
        labels: of the row's tokens.
        objective: the objective.
        row: the row's number in its data set.
        permute: the root of the placebo's draws, needed if the objective permutes.
    """
    roles_L = _chosen(labels, objective.turns)
    num_L = np.array(objective.num, dtype=np.float32)[roles_L]
    den_L = np.array(objective.den, dtype=np.float32)[roles_L]
    for detail, num, den in objective.details:
        here = (labels.details == detail) & (roles_L == labels.roles)
        num_L[here], den_L[here] = num, den
    num_L *= labels.weights
    if objective.normaliser == "weight":
        den_L *= labels.weights
    elif objective.normaliser == "nonzero":
        den_L[labels.weights == 0] = 0
    if objective.first_header_only:
        others = np.flatnonzero(roles_L != Role.SPECIAL)
        header = others[0] if len(others) else len(roles_L)
        num_L[:header] = den_L[:header] = 0
    if objective.permute:
        if permute is None:
            raise ValueError("an objective that permutes needs a generator")
        order = 1 + row_generator(permute, row).permutation(len(roles_L) - 1)
        num_L[1:], den_L[1:] = num_L[order], den_L[order]
    num_L[0] = den_L[0] = 0
    return num_L, den_L


def _chosen(labels: Labels, turns: str | tuple[int, ...]) -> np.ndarray:
    """Return the roles with the answers that are not among `turns` as instructions, uint8 (L,)."""
    if turns == "all":
        return labels.roles
    count = 1 + int(labels.answers.max(initial=-1))
    wanted = ENDS[turns] if isinstance(turns, str) else turns
    numbers = [turn if turn >= 0 else count + turn for turn in wanted]
    left_out = (labels.answers >= 0) & ~np.isin(labels.answers, numbers)
    return np.where(left_out, np.uint8(Role.INSTRUCTION), labels.roles)
