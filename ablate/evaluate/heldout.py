"""Held-out loss of each role: the same number whatever masking the model was trained under.

Every target counts once, with weight 1; position 0 of a row is never a target.

Shapes: B rows, L length, K targets, M lanes, N rows of the part, R roles.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablate.config.schema import Evaluate, Execution
from ablate.data.tokenise import Tokenised
from ablate.evaluate.lanes import Same, beside, share
from ablate.evaluate.passes import LOGITS, TOKENS, batches, likelihoods, of_lanes
from ablate.evaluate.scores import TaskScore, finite
from ablate.evaluate.shapes import inner
from ablate.evaluate.split import over_processes
from ablate.roles import NAMES, Role

WHOLE = {"cpu": 2**26}  # logits of a batch below which all are made, on this kind of device


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Summed loss in nats and number of targets, per row and role."""

    sums_NR: np.ndarray  # float64
    counts_NR: np.ndarray  # int64


def losses(
    model: nn.Module, tokenised: Tokenised, *, rows: int | None = None, batch_size: int = 64
) -> dict[str, tuple[float, int]]:
    """Return summed loss in nats and number of targets of every role that occurs.

    Args:
        model: gives logits for ids; comes back in the mode it had.
        tokenised: the held-out part.
        rows: how many of its first rows; None for all.
        batch_size: rows a forward pass.
    """
    found = row_losses(model, tokenised, rows=rows, batch_size=batch_size)
    sums_R, counts_R = found.sums_NR.sum(0), found.counts_NR.sum(0)
    return {
        NAMES[role]: (float(sums_R[role]), int(counts_R[role]))
        for role in Role
        if counts_R[role] > 0
    }


def score(
    model: nn.Module, tokenised: Tokenised, part: str, evaluate: Evaluate, *, execution: Execution
) -> list[TaskScore]:
    """Return the mean loss per target of every role that occurs in the held-out `part`.

    An item is a row, its score the row's mean. The standard error is that of a ratio of two sums
    over independent rows (Cochran, Sampling Techniques, 3rd ed., equation 6.9).
    """
    found = row_losses(
        model,
        tokenised,
        rows=evaluate.heldout_rows,
        batch_size=execution.eval_batch_size,
        batch_tokens=execution.eval_batch_tokens,
    )
    roles = [role for role in Role if found.counts_NR[:, role].any()]
    return [_score(part, NAMES[r], found.sums_NR[:, r], found.counts_NR[:, r]) for r in roles]


def row_losses(
    model: nn.Module,
    tokenised: Tokenised,
    *,
    rows: int | None,
    batch_size: int,
    batch_tokens: int = TOKENS,
) -> RowLosses:
    """Return summed losses and target counts of the first `rows` rows, per role."""
    total = len(tokenised) if rows is None else min(rows, len(tokenised))
    training = model.training
    model.eval()

    def run(model: nn.Module, lanes: int) -> list[RowLosses]:
        # Nearly every token is scored: what goes through the head at once is bounded too.
        tokens = min(batch_tokens, LOGITS // _vocabulary(model))
        tokens = share(tokens, lanes, next(model.parameters()).device)
        parts = batches(tokenised.lengths[:total].tolist(), rows=batch_size, tokens=tokens)
        return _by_lane(model, tokenised, list(parts), lanes)

    question = ("heldout", Same(tokenised), total, batch_size, batch_tokens)
    found = beside(model, question, run)
    model.train(training)
    return found


def _by_lane(
    model: nn.Module, tokenised: Tokenised, parts: list[list[int]], lanes: int
) -> list[RowLosses]:
    """Return the losses of the rows of all batches `parts` for each of the model's lanes."""
    total = sum(map(len, parts))
    sums_MNR = np.zeros((lanes, total, len(NAMES)))
    counts_NR = np.zeros((total, len(NAMES)), dtype=np.int64)

    def found(numbers: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        batches_of_rows = ([tokenised.row(i) for i in parts[number]] for number in numbers)
        return [_batch_losses(model, rows, lanes) for rows in batches_of_rows]

    every = over_processes([[number] for number in range(len(parts))], found)
    for some, (sums_MBR, counts_BR) in zip(parts, every, strict=True):
        sums_MNR[:, some], counts_NR[some] = sums_MBR, counts_BR
    return [RowLosses(sums_NR, counts_NR) for sums_NR in sums_MNR]


@torch.inference_mode()
def _batch_losses(
    model: nn.Module, some: list[tuple[np.ndarray, np.ndarray]], lanes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return sums (M, B, R) and counts (B, R) of rows given as ids and roles, longest first.

    Padding is on the right, where causal attention never looks, so no mask is needed.
    """
    device = next(model.parameters()).device
    shape = (len(some), len(some[0][0]))
    ids_BL = np.zeros(shape, dtype=np.int64)
    roles_BL = np.full(shape, Role.PAD, dtype=np.int64)
    for number, (ids, roles) in enumerate(some):
        ids_BL[number, : len(ids)], roles_BL[number, : len(ids)] = ids, roles
    roles_BL[:, 0] = Role.PAD  # never a target
    targets_BLR = roles_BL[:, :, None] == np.arange(len(NAMES))
    targets_BLR[:, :, Role.PAD] = False
    read_BL = torch.from_numpy(ids_BL).to(device)
    losses_MBL = _losses(model, read_BL, roles_BL != Role.PAD, lanes)
    sums_MBR = np.stack([np.einsum("bl,blr->br", each, targets_BLR) for each in losses_MBL])
    return sums_MBR, targets_BLR.sum(1)


def _losses(model: nn.Module, ids_BL: Tensor, target_BL: np.ndarray, lanes: int) -> np.ndarray:
    """Return the loss of every target in nats by lane (M, B, L), float64; 0 of what does not count.

    Where logits are few all are made: numbers on a CPU stay what they were to the last digit.
    """
    losses_MBL = np.zeros((lanes, *target_BL.shape))
    if ids_BL.numel() * lanes * _vocabulary(model) < WHOLE.get(ids_BL.device.type, 0):
        all_BL = ids_BL.repeat(lanes, 1)
        logits_BLV = model(input_ids=all_BL, use_cache=False).logits
        logits_BLV = logits_BLV[:, -ids_BL.shape[1] :]  # behind the virtual tokens of a prompt
        logits_BVL = logits_BLV[:, :-1].float().transpose(1, 2)
        made_BL = F.cross_entropy(logits_BVL, all_BL[:, 1:], reduction="none")
        losses_MBL[:, :, 1:] = made_BL.double().cpu().numpy().reshape(lanes, len(ids_BL), -1)
        return losses_MBL
    target_K = torch.from_numpy(np.flatnonzero(target_BL)).to(ids_BL.device)
    inputs = {"input_ids": ids_BL}
    asked = of_lanes(inputs, target_K - 1, ids_BL.flatten()[target_K], lanes=lanes)
    made_K, _ = likelihoods(model, *asked)
    losses_MBL[:, target_BL] = -made_K.double().cpu().numpy().reshape(lanes, -1)
    return losses_MBL


def _vocabulary(model: nn.Module) -> int:
    size: int = inner(model).config.get_text_config().vocab_size
    return size


def _score(part: str, role: str, sums_N: np.ndarray, counts_N: np.ndarray) -> TaskScore:
    rows = np.flatnonzero(counts_N)
    sums, counts = sums_N[rows], counts_N[rows]
    mean = float(sums.sum() / counts.sum())
    error = None
    if len(rows) > 1:
        spread = ((sums - mean * counts) ** 2).sum() * len(rows) / (len(rows) - 1)
        error = float(np.sqrt(spread) / counts.sum())
    return TaskScore(
        asked=part,
        task=f"heldout_{part}",
        metric=f"loss_{role}",
        value=finite(mean),
        unit="nats",
        n=len(rows),
        version="1",
        task_type="heldout",
        side="target",
        skill=role,
        se=finite(error),
        higher_is_better=False,
        items=tuple(zip(rows.tolist(), (sums / counts).tolist(), strict=True)),
    )
