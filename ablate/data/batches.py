"""Which examples make an optimizer step, and their layout as tensors.

B rows of a micro-batch, L positions, E examples in it (E = B when padded; B = 1 when packed).
`num_BL[b, t]` and `den_BL[b, t]` weigh the prediction *of* the token at t from those before it;
they are 0 at an example's first token, so nothing is ever predicted across a boundary.

Rows are padded on the right, which causal attention ignores, so a padded batch needs no mask.
Packed examples are separated by attention inside their bounds (`models.attention`) or else by
positions that restart, *only if* the model is given neither a mask nor a cache (measured: with
either they attend to each other without an error).
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablate.config.schema import Execution, Train
from ablate.data.targets import row_weights
from ablate.data.tokenise import Tokenised
from ablate.objective import Objective
from ablate.roles import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A micro-batch: the model's input and the weights of its losses."""

    ids_BL: Tensor  # int64
    roles_BL: Tensor  # uint8
    num_BL: Tensor  # float32
    den_BL: Tensor  # float32; all zero under the `examples` normaliser
    example_BL: Tensor  # int64 in [0, E): which example a position belongs to
    positions_BL: Tensor | None  # int64, restarting; None when padded
    rows_E: Tensor  # int64: row numbers in the data set
    lengths_E: Tensor  # int64

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.rows_E)

    @property
    def tokens(self) -> int:
        """The number of tokens without padding."""
        return int(self.lengths_E.sum())

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved: dict[str, Any] = {n: None if v is None else v.to(device) for n, v in values.items()}
        return dataclasses.replace(self, **moved)


def order(
    tokenised: Tokenised, *, train: Train, generator: np.random.Generator
) -> list[np.ndarray]:
    """Return the row numbers of every optimizer step, one int64 array each.

    The examples are one stream: a fresh permutation per epoch, end to end. A step takes the next
    `batch_size` of them, across the end of an epoch too, so that at most one step is short: the
    very last. With batch_unit=tokens a step takes examples while their tokens fit into
    `batch_size`, and at least one. `epochs` may be a fraction; `max_steps`, where given, counts
    instead of it.

    Args:
        tokenised: the data.
        train: batch size and unit, epochs or steps.
        generator: the `order` stream.
    """
    stop = None if train.max_steps else max(1, round(train.epochs * len(tokenised)))
    sizes = tokenised.lengths.tolist()
    steps: list[np.ndarray] = []
    step: list[int] = []
    tokens = 0
    for seen, row in enumerate(_stream(len(tokenised), generator)):
        size = 1 if train.batch_unit == "examples" else sizes[row]
        ended = seen == stop
        if step and (ended or tokens + size > train.batch_size):
            steps.append(np.array(step, dtype=np.int64))
            step, tokens = [], 0
        if ended or len(steps) == train.max_steps:
            break
        step.append(row)
        tokens += size
    return steps


def _stream(n_rows: int, generator: np.random.Generator) -> Iterator[int]:
    while True:
        yield from generator.permutation(n_rows).tolist()


def micro_batches(
    tokenised: Tokenised,
    rows: np.ndarray,
    *,
    objective: Objective,
    execution: Execution,
    permute_generator: np.random.Generator | None = None,
) -> list[Batch]:
    """Return the micro-batches of one optimizer step, every row in one of them.

    Rows are sorted by length inside the step, longest first, which saves padding and changes no
    sum; how they are split changes no loss either, except under scope=microbatch.

    Args:
        tokenised: the data.
        rows: row numbers of the step.
        objective: the objective.
        execution: rows and tokens a micro-batch, and layout; auto is padded, unless
            `training.layout` has chosen.
        permute_generator: the `permute` stream, for objectives that permute.
    """
    rows = rows[np.argsort(-tokenised.lengths[rows], kind="stable")]
    packed = execution.layout == "packed"
    lay = _packed if packed else _padded
    return [
        lay([_example(tokenised, int(row), objective, permute_generator) for row in rows[part]])
        for part in split(tokenised.lengths[rows].tolist(), execution, packed=packed)
    ]


def split(lengths: Sequence[int], execution: Execution, *, packed: bool) -> Iterator[slice]:
    """Yield the micro-batches of rows sorted by length, longest first: at least one row in each.

    Args:
        lengths: of the rows.
        execution: `micro_batch_size` rows and `micro_batch_tokens` tokens at most; the tokens of a
            padded micro-batch are its rows times the longest of them.
        packed: whether rows are packed, so that there is no padding.
    """
    asked = execution.micro_batch_size
    most = asked if isinstance(asked, int) else len(lengths)
    budget = execution.micro_batch_tokens or math.inf
    start = tokens = 0
    for at, length in enumerate(lengths):
        tokens = tokens + length if packed else (at - start + 1) * lengths[start]
        if at > start and (at - start == most or tokens > budget):
            yield slice(start, at)
            start, tokens = at, length
    if lengths:
        yield slice(start, len(lengths))


@dataclass(frozen=True, slots=True)
class _Example:
    row: int
    ids_L: np.ndarray
    roles_L: np.ndarray
    num_L: np.ndarray
    den_L: np.ndarray


def _example(
    tokenised: Tokenised, row: int, objective: Objective, permute: np.random.Generator | None
) -> _Example:
    ids_L, roles_L = tokenised.row(row)
    num_L, den_L = row_weights(tokenised.labels_of(row), objective, row=row, permute=permute)
    return _Example(row, ids_L, roles_L, num_L, den_L)


def _padded(examples: list[_Example]) -> Batch:
    shape = (len(examples), max(len(e.ids_L) for e in examples))
    ids_BL = np.zeros(shape, dtype=np.int64)
    roles_BL = np.full(shape, Role.PAD, dtype=np.uint8)
    num_BL, den_BL = np.zeros((2, *shape), dtype=np.float32)
    for b, example in enumerate(examples):
        size = len(example.ids_L)
        ids_BL[b, :size], roles_BL[b, :size] = example.ids_L, example.roles_L
        num_BL[b, :size], den_BL[b, :size] = example.num_L, example.den_L
    example_BL = np.repeat(np.arange(shape[0])[:, None], shape[1], axis=1)
    return _batch(examples, [ids_BL, roles_BL, num_BL, den_BL, example_BL], None)


def _packed(examples: list[_Example]) -> Batch:
    sizes = [len(e.ids_L) for e in examples]
    laid = [
        np.concatenate([e.ids_L for e in examples]).astype(np.int64)[None],
        np.concatenate([e.roles_L for e in examples])[None],
        np.concatenate([e.num_L for e in examples])[None],
        np.concatenate([e.den_L for e in examples])[None],
        np.repeat(np.arange(len(examples)), sizes)[None],
    ]
    positions_BL = np.concatenate([np.arange(size) for size in sizes])[None]
    return _batch(examples, laid, positions_BL)


def _batch(
    examples: list[_Example],
    laid: list[np.ndarray],
    positions_BL: np.ndarray | None,
) -> Batch:
    ids_BL, roles_BL, num_BL, den_BL, example_BL = map(torch.from_numpy, laid)
    return Batch(
        ids_BL=ids_BL,
        roles_BL=roles_BL,
        num_BL=num_BL,
        den_BL=den_BL,
        example_BL=example_BL,
        positions_BL=None if positions_BL is None else torch.from_numpy(positions_BL),
        rows_E=torch.tensor([e.row for e in examples]),
        lengths_E=torch.tensor([len(e.ids_L) for e in examples]),
    )
