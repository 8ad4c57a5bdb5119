"""The kinds of the factor `init`, initialisations of LoRA's factors, a row each. No torch.

A kind is one row of `INITS`; its code is in `levels`. On quantised weights PEFT refuses most kinds
that decompose a weight; OLoRA would quantise the remaining weight a second time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ablate.adapters.method import PRECISIONS, UNQUANTISED, Condition, Shapes
from ablate.adapters.options import Option, filled, flag, is_positive, one_of, positive, whole
from ablate.config.schema import Cell
from ablate.errors import UserError, unknown

RankProblem = Callable[[int, Shapes], str]  # why a rank is not possible on these matrices, or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InitMethod:
    """One kind of init.

    steps: "module:NAME" of its `InitSteps`; "" for the method's own start.
    options: the options that a level may set.
    precisions: the precisions of the base's weights that it supports.
    conv1d: whether it supports GPT-2's transposed layers.
    rank_problem: why a rank is not possible on the adapted matrices.
    changes_base: whether it subtracts the adapter's initial change from the base's weights.
    starts_at_base: whether the first outputs are the base's.
    starts_nonzero: whether the adapter's initial change, not subtracted, makes up what the stored
        weights lack of the base's.
    decomposes: whether it takes minutes on a large base, whose weights alone it depends on: such
        starts are kept between cells (`init.kept`).
    shards: whether a model that starts so trains with a part of every weight on each device.
    control: of a start that is one, what its cells show.
    """

    steps: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    precisions: tuple[str, ...] = PRECISIONS
    conv1d: bool = True
    rank_problem: RankProblem = lambda rank, shapes: ""
    changes_base: Condition = False
    starts_at_base: Condition = True
    starts_nonzero: bool = False
    decomposes: Condition = False
    shards: bool = True
    control: str = ""


def _odd(rank: int, shapes: Shapes) -> str:
    return "needs an even rank" if rank % 2 else ""


def _above_half(side: Callable[[int, int], int]) -> RankProblem:
    """Return the condition that twice the rank is at most `side(d, k)` of every matrix."""

    def problem(rank: int, shapes: Shapes) -> str:
        name, (d, k) = min(shapes.items(), key=lambda item: side(*item[1]))
        if 2 * rank <= side(d, k):
            return ""
        return f"needs a rank of at most {side(d, k) // 2} for {name} ({d} x {k})"

    return problem


_ITERATIONS = Option(
    None,
    lambda v: v is None or whole(1).accepts(v),
    "a positive whole number, or null: the exact decomposition",
)
_COSINE = Option(0.99, lambda v: is_positive(v) and v <= 1, "a number in (0, 1]")
_BATCHES = whole(8)  # how many of the run's first batches are looked at
_LEVELS = "ablate.adapters.init.levels"

INITS: Mapping[str, InitMethod] = {
    "default": InitMethod(),
    "gaussian": InitMethod(steps=f"{_LEVELS}:GAUSSIAN"),
    "orthogonal": InitMethod(
        steps=f"{_LEVELS}:ORTHOGONAL", rank_problem=_odd, precisions=UNQUANTISED
    ),
    "pissa": InitMethod(
        steps=f"{_LEVELS}:PISSA",
        options={"iterations": _ITERATIONS},
        precisions=UNQUANTISED,
        changes_base=True,
        decomposes=lambda options: options["iterations"] is None,
    ),
    "olora": InitMethod(
        steps=f"{_LEVELS}:OLORA",
        precisions=UNQUANTISED,
        conv1d=False,
        changes_base=True,
        decomposes=True,
    ),
    "eva": InitMethod(
        steps=f"{_LEVELS}:EVA",
        options={"batches": _BATCHES, "converged": _COSINE},
        precisions=UNQUANTISED,
        rank_problem=_above_half(lambda d, k: k),
    ),
    "corda": InitMethod(
        steps=f"{_LEVELS}:CORDA",
        options={"batches": _BATCHES},
        precisions=UNQUANTISED,
        changes_base=True,
    ),
    "lora_ga": InitMethod(
        steps=f"{_LEVELS}:LORA_GA",
        options={
            "batches": _BATCHES,
            "direction": one_of("ArB2r", "A2rBr", "ArBr", "random"),
            "scale": one_of("stable", "weight_svd", "gd_scale", "unit"),
            "gamma": positive(16.0),
        },
        precisions=UNQUANTISED,
        conv1d=False,
        rank_problem=_above_half(min),
        changes_base=True,
    ),
    "loftq": InitMethod(steps=f"{_LEVELS}:LOFTQ", precisions=("nf4",), starts_nonzero=True),
    "milora": InitMethod(
        steps=f"{_LEVELS}:MILORA", precisions=UNQUANTISED, changes_base=True, decomposes=True
    ),
    "both_random": InitMethod(
        steps=f"{_LEVELS}:BOTH_RANDOM",
        options={"subtract": flag()},
        precisions=UNQUANTISED,
        changes_base=lambda options: options["subtract"],
        starts_at_base=lambda options: options["subtract"],
    ),
    "both_zero": InitMethod(
        steps=f"{_LEVELS}:BOTH_ZERO",
        control="neither factor ever has a gradient: nothing trains, and every score is the base's",
    ),
}


def init_of(cell: Cell) -> tuple[InitMethod, dict[str, Any]]:
    """Return the row of the cell's init and all of its options.

    Raises:
        UserError: there is no such kind, or an option is wrong.
    """
    asked = cell.init
    if asked.kind not in INITS:
        raise unknown("init.kind", asked.kind, INITS)
    row = INITS[asked.kind]
    return row, filled(asked.options, row.options, factor="init", kind=asked.kind)


def check(cell: Cell, *, architecture: str, adapted: Shapes | None) -> None:
    """Refuse an init that the model's layers, their precision or the rank rule out.

    Args:
        cell: the cell; whether its method supports the init is checked elsewhere.
        architecture: of the base model, as transformers names it.
        adapted: shapes of the adapted matrices; without them the rank is not checked.

    Raises:
        UserError: one line with the setting, the reason and what is allowed.
    """
    row, _ = init_of(cell)
    if cell.base_precision not in row.precisions:
        raise UserError(
            f"base_precision={cell.base_precision}: not with init={cell.init.name}; with it "
            f"base_precision must be {' or '.join(row.precisions)}"
        )
    if architecture.startswith("GPT2") and not row.conv1d:
        raise UserError(
            f"init={cell.init.name}: does not support GPT-2's transposed layers "
            f"(model={cell.model.name})"
        )
    if adapted is not None and (problem := row.rank_problem(cell.rank, adapted)):
        raise UserError(f"rank={cell.rank}: init={cell.init.name} {problem}")
