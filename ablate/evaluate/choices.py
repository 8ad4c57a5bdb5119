"""Log-likelihoods of several continuations of one context, the context read once.

A question and its answers are one row: the context, then every answer without its last token, one
after the other. A 4-D mask lets an answer see the context and itself alone, and the positions
restart after the context, so each answer gets the numbers it would get by itself, in fp32 (of bf16
see `precision`); of a row with four short answers this is a third of the work.

Shapes: B rows, L length, N scored tokens.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ablate.evaluate.lanes import beside, share
from ablate.evaluate.passes import TOKENS, batches, likelihoods, of_lanes
from ablate.evaluate.split import over_processes
from ablate.training.distributed import processes

CONTEXT, PAD = 0, -1  # segments of a row; its answers are 1, 2, ...
MOST_ANSWERS = 16  # per row: the mask grows with the square of the row's length


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """A context with its continuations; `first` is the number of the first one's request."""

    context: list[int]
    answers: list[list[int]]
    first: int

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return len(self.context) + sum(len(answer) - 1 for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Layout:
    """A batch of rows as tensors; `index` is where of the flattened (B, L) a token is predicted."""

    ids_BL: Tensor
    segments_BL: Tensor
    positions_BL: Tensor
    index_N: Tensor
    target_N: Tensor
    request_N: Tensor


def rows(pairs: Sequence[tuple[list[int], list[int]]]) -> list[AnswerRow]:
    """Return the (context, continuation) pairs as rows: neighbours with one context share it."""
    found: list[AnswerRow] = []
    number = 0
    for context, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        answers = [answer for _, answer in group]
        for start in range(0, len(answers), MOST_ANSWERS):
            some = answers[start : start + MOST_ANSWERS]
            found.append(AnswerRow(context, some, number))
            number += len(some)
    return found


def loglikelihoods(
    model: nn.Module,
    pairs: Sequence[tuple[list[int], list[int]]],
    *,
    batch_size: int,
    batch_tokens: int = TOKENS,
) -> list[tuple[float, bool]]:
    """Return for every pair the continuation's log-likelihood in nats, and whether it is greedy.

    Equal pairs are computed once. A question may offer the same answer twice; at two places of a
    row it would get two roundings, and the last digit would choose between them.

    Args:
        model: a model that `shapes.short_ways` accepts.
        pairs: token ids of context and continuation, neither empty.
        batch_size: rows a forward pass, at most.
        batch_tokens: tokens a forward pass, at most.
    """
    numbers: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    number = [numbers.setdefault((tuple(c), tuple(a)), len(numbers)) for c, a in pairs]

    def run(model: nn.Module, lanes: int) -> list[list[tuple[float, bool]]]:
        tokens = share(batch_tokens, lanes, next(model.parameters()).device)
        distinct = [(list(context), list(answer)) for context, answer in numbers]
        return _by_lane(model, rows(distinct), len(distinct), lanes, rows=batch_size, tokens=tokens)

    found = beside(model, ("choices", tuple(numbers), batch_size, batch_tokens), run)
    return [found[i] for i in number]


@torch.inference_mode()
def _by_lane(
    model: nn.Module, asked: Sequence[AnswerRow], requests: int, lanes: int, **most: int
) -> list[list[tuple[float, bool]]]:
    """Return log-likelihood and greediness of every request for each of the model's lanes."""
    device = next(model.parameters()).device
    total = torch.zeros(lanes, requests, dtype=torch.float64, device=device)
    wrong = torch.zeros(lanes, requests, dtype=torch.long, device=device)
    parts = list(batches([row.length for row in asked], **most))

    def found(numbers: list[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [_read(model, [asked[i] for i in parts[n]], device, lanes) for n in numbers]

    for request_N, logp_N, wrong_N in over_processes([[n] for n in range(len(parts))], found):
        total.index_add_(1, request_N.to(device), logp_N.to(device))
        wrong.index_add_(1, request_N.to(device), wrong_N.to(device))
    pairs = zip(total.tolist(), (wrong == 0).tolist(), strict=True)
    return [list(zip(*pair, strict=True)) for pair in pairs]


def _read(
    model: nn.Module, some: list[AnswerRow], device: torch.device, lanes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return of each scored token of a batch its request (N,), and by lane its log-probability and
    whether another one is likelier (M, N).
    """
    batch = _layout(some, device)
    asked_of = _inputs(model, batch), batch.index_N, batch.target_N
    logp_N, first_N = likelihoods(model, *of_lanes(*asked_of, lanes=lanes))
    found = batch.request_N, logp_N.double().view(lanes, -1), (~first_N).long().view(lanes, -1)
    return found if processes() == 1 else tuple(t.cpu() for t in found)  # type: ignore[return-value]


def _inputs(model: nn.Module, batch: Layout) -> dict[str, Tensor]:
    mask = _mask(batch.segments_BL, next(model.parameters()).dtype)
    return {
        "input_ids": batch.ids_BL,
        "attention_mask": mask,
        "position_ids": batch.positions_BL,
    }


def _mask(segments_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to the attention scores: 0 where i may see j, else the lowest number.

    A float mask, for a 4-D mask of bools is read otherwise by eager attention; padding sees itself,
    for a row that sees nothing has no softmax.
    """
    length = segments_BL.shape[1]
    seen_BL1, seer_B1L = segments_BL[:, :, None], segments_BL[:, None, :]
    earlier_LL = torch.ones(length, length, dtype=torch.bool, device=segments_BL.device).tril()
    same_BLL = (seen_BL1 == seer_B1L) | (seer_B1L == CONTEXT)
    allowed_BLL = same_BLL & earlier_LL
    blocked = torch.finfo(dtype).min
    mask_BLL = torch.zeros(allowed_BLL.shape, dtype=dtype, device=segments_BL.device)
    return mask_BLL.masked_fill_(~allowed_BLL, blocked)[:, None]


def _layout(some: list[AnswerRow], device: torch.device) -> Layout:
    length = max(row.length for row in some)
    ids, segments, positions = [], [], []
    scored: list[tuple[int, int, int]] = []
    for number, row in enumerate(some):
        left, size = length - row.length, len(row.context)
        row_ids, row_segments = [0] * left + row.context, [PAD] * left + [CONTEXT] * size
        row_positions = [0] * left + list(range(size))
        for index, answer in enumerate(row.answers):
            places = [left + size - 1, *range(len(row_ids), len(row_ids) + len(answer) - 1)]
            request = row.first + index
            pairs = zip(places, answer, strict=True)
            scored += [(number * length + place, token, request) for place, token in pairs]
            row_ids += answer[:-1]
            row_segments += [index + 1] * (len(answer) - 1)
            row_positions += range(size, size + len(answer) - 1)
        ids.append(row_ids)
        segments.append(row_segments)
        positions.append(row_positions)
    grids = (torch.tensor(table, device=device) for table in (ids, segments, positions))
    return Layout(*grids, *torch.tensor(scored, device=device).unbind(1))
