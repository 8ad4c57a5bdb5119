"""What the registry knows of an adapter method: one row, `Method`. No torch.

The rank of a cell is a budget: each method turns it into its own capacity setting so that its
number of trained parameters is as near as possible to LoRA's r (d + k) per adapted matrix.

Code that needs torch (hooks, starts, PEFT configurations) is named in a row as "module:attribute"
and imported when it is first needed (`load_attribute`), so that a plan can be made without torch.

Letters: D or d outputs of a matrix, K or k inputs, r LoRA's rank. A shape is always (d, k).
"""

import importlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ablate.adapters.options import Option, Options
from ablate.config.schema import Cell

Shape = tuple[int, int]  # (outputs d, inputs k)
Shapes = Mapping[str, Shape]  # by module name
Count = Callable[[int, Shapes, Options], int]  # trained parameters at a capacity, in closed form
Condition = bool | Callable[[Options], bool]  # constant, or decided by the method's options

PRECISIONS = ("fp32", "bf16", "int8", "nf4")
UNQUANTISED = ("fp32", "bf16")
# Optimizers that train any parameter.
GENERAL = (
    "adamw", "adamw_8bit", "adafactor", "lion", "adamw_bnb_8bit", "paged_adamw", "paged_adamw_8bit",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A capacity that is one integer of the PEFT configuration.

    setting: its name in the PEFT configuration.
    count: number of trained parameters at a value; must not decrease with the value.
    largest: the largest value that is possible for these shapes.
    step: the value must be a multiple of this.
    """

    setting: str
    count: Count
    largest: Callable[[Shapes, Options], int]
    step: Callable[[Shapes, Options], int] = lambda shapes, options: 1

    def at(self, rank: int, shapes: Shapes, options: Options) -> int:
        """Return the value whose count is nearest to LoRA's at `rank`, the smaller at a tie."""
        step = self.step(shapes, options)
        steps = max(1, self.largest(shapes, options) // step)
        return step * closest(
            lambda n: self.count(n * step, shapes, options), lora_count(rank, shapes), steps
        )

    def chosen(self, rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
        """Return the setting at a LoRA rank."""
        return {self.setting: self.at(rank, shapes, options)}

    def parameters(self, rank: int, shapes: Shapes, options: Options) -> int:
        """Return how many parameters train at a LoRA rank."""
        return self.count(self.at(rank, shapes, options), shapes, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSize:
    """A capacity that is chosen from a list of candidates: divisors, or several settings at once.

    setting: its name in the documentation.
    candidates: the settings that are possible for these shapes, given LoRA's rank; of candidates
        that are equally near to LoRA's count the first is taken.
    count: number of trained parameters under one of them.
    """

    setting: str
    candidates: Callable[[int, Shapes, Options], Iterable[dict[str, Any]]]
    count: Callable[[Mapping[str, Any], Shapes, Options], int]

    def chosen(self, rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
        """Return the candidate whose count is nearest to LoRA's at `rank`."""
        target = lora_count(rank, shapes)
        return min(
            self.candidates(rank, shapes, options),
            key=lambda settings: abs(self.count(settings, shapes, options) - target),
        )

    def parameters(self, rank: int, shapes: Shapes, options: Options) -> int:
        """Return how many parameters train at a LoRA rank."""
        return self.count(self.chosen(rank, shapes, options), shapes, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One adapter method: a row of the registry.

    What it is
        paper: arXiv id.
        config: its PEFT configuration class: a name in `peft`, or "module:Class"; "" for none.
        options: the options that a level may set; each is passed to the configuration by its name.
        names: the configuration's name of an option where it differs; "" if it is not passed on.
        fixed: further arguments of the configuration.

    Capacity
        size: how a rank becomes the capacity setting; None if the method has none.
        complete: from all of these arguments and the shapes, the final arguments.
        arguments: replaces all of the above: the configuration's arguments at a rank.
        capacity: the canonical form of the arguments, part of a run's identity: equal means same
        run.
        parameters: number of parameters that the adapter adds and trains; by default size.count.
        formula: the same in words, for a d x k matrix.
        parameters_under: `parameters` under an optimizer that keeps some of them fixed, by the
            optimizer's kind.
        stored: number of further parameters in its file: fixed factors, sums of past changes.
        matched: whether it can reach LoRA's budget within 10 % at common ranks.

    What it changes
        adapts: whether it adds weights; if not, rank and placement have no meaning.
        placed: whether `placement` decides which matrices it changes.
        only: name endings of the modules that it adapts among those placed; empty for all.
        trains_norms: whether it trains copies of the normalisation layers.
        trains_base: whether the base's own weights train.
        changes_base: whether it removes a component from the base's weights when it is added.
        has_delta: whether its change is a matrix added to the base's, which PEFT returns as a
            differentiable function of the trained parameters (`get_delta_weight`).
        has_factors: whether its layers hold LoRA's two factors as modules `lora_A` and `lora_B`.
        vectors_only: whether all trained parameters are stored as vectors, which do not decay.
        starts_at_base: whether the first outputs equal the base's.
        starts_nonzero: whether trained matrices of zero would be farther from the base than the
            start: this is an identity, a product that is subtracted, or tokens of words. Weight
            decay then acts on the distance from the start.
        merges: whether it can be merged into the base's weights exactly.
        conv1d: whether it supports GPT-2's transposed layers (`Conv1D`).
        packs: whether packed examples do not see each other under it.
        shards: whether its weights can be cut into parts for several devices
            (`training.sharding`): none is a single number, or shared by several blocks.

    What it needs
        start: "module:function" (module, InitContext) that sets the initial values; "" for PEFT's.
        config_from_data: "module:function" (Calibration) that returns arguments of the
            configuration that depend on the training data; they are saved with the weights.
        hooks: "module:function" (options, Streams) that returns its training hooks; "" for none.
        schedule: what it does at which step of a run of so many; raises UserError where a run is
            too short for it.
        lanes: "module:function" by which its layers are stacked (`training.lanes.layers.Kind`); ""
            where its cells train alone.
        seed: the configuration's setting that seeds the random tensors that do not train.
        quiet: the beginning of a PEFT warning that is handled by the row and not shown.
        refuses: returns the error line for a cell that it cannot run, "" for any other.
        inits, optimizers, precisions: the levels of those factors that it supports.
    """

    paper: str = ""
    config: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    size: Size | CandidateSize | None = None
    complete: Callable[[dict[str, Any], Shapes], dict[str, Any]] | None = None
    arguments: Callable[[int, Shapes, Options], dict[str, Any]] | None = None
    capacity: Callable[[int, Shapes, Options], dict[str, Any]] | None = None
    parameters: Count | None = None
    formula: str = ""
    parameters_under: Mapping[str, Count] = field(default_factory=dict)
    stored: Count | None = None
    matched: bool = True

    adapts: bool = True
    placed: bool = True
    only: tuple[str, ...] = ()
    trains_norms: bool = False
    trains_base: bool = False
    changes_base: bool = False
    has_delta: Condition = False
    has_factors: bool = False
    vectors_only: Condition = False
    starts_at_base: bool = True
    starts_nonzero: Condition = False
    merges: bool = True
    conv1d: bool = True
    packs: bool = True
    shards: bool = True

    start: str = ""
    config_from_data: str = ""
    hooks: str = ""
    schedule: Callable[[int, Options], Any] | None = None
    lanes: str = ""
    seed: str = ""
    quiet: str = ""
    refuses: Callable[[Cell, Options], str] | None = None
    inits: tuple[str, ...] = ("default",)
    optimizers: tuple[str, ...] = GENERAL
    precisions: tuple[str, ...] = UNQUANTISED

    def arguments_at(self, rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
        """Return the arguments of the configuration at a LoRA rank."""
        if self.arguments is not None:
            return self.arguments(rank, shapes, options)
        size = self.size.chosen(rank, shapes, options) if self.size else {}
        renamed = {self.names.get(name, name): value for name, value in options.items()}
        renamed.pop("", None)
        found = {**self.fixed, **renamed, **size}
        return self.complete(found, shapes) if self.complete else found

    def capacity_at(self, rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
        """Return the method's part of a run's identity."""
        return (self.capacity or self.arguments_at)(rank, shapes, options)

    def parameters_at(
        self, rank: int, shapes: Shapes, options: Options, *, optimizer: str = "adamw"
    ) -> int:
        """Return how many parameters the adapter trains."""
        if optimizer in self.parameters_under:
            return self.parameters_under[optimizer](rank, shapes, options)
        if self.parameters is not None:
            return self.parameters(rank, shapes, options)
        return self.size.parameters(rank, shapes, options) if self.size else 0


@dataclass(frozen=True, slots=True)
class Budget:
    """Parameters of LoRA at the same rank and targets (asked), and of the method itself (got)."""

    asked: int
    got: int
    status: Literal["matched", "unmatched"]

    @property
    def ratio(self) -> float:
        """The method's count divided by LoRA's."""
        return self.got / self.asked


def holds(condition: Condition, options: Options) -> bool:
    """Return whether a condition of a row is true under a method's options."""
    return condition(options) if callable(condition) else condition


def load_attribute(name: str) -> Any:
    """Return the attribute that a row names as "module:attribute", importing its module."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def lora_count(rank: int, shapes: Shapes) -> int:
    """Return LoRA's trained parameters, r (d + k) per matrix."""
    return rank * sum(d + k for d, k in shapes.values())


def closest(count: Callable[[int], int], asked: int, largest: int) -> int:
    """Return the n in [1, largest] whose count(n) is nearest to `asked`, by bisection.

    `count` must not decrease with n. Of two equally near values the smaller is returned.
    """
    low, high = 1, largest
    while low < high:  # the smallest n with count(n) >= asked
        middle = (low + high) // 2
        if count(middle) < asked:
            low = middle + 1
        else:
            high = middle
    below = low - 1
    if below >= 1 and asked - count(below) <= abs(count(low) - asked):
        return below
    return low


def each(count: Callable[[int, int, int], int]) -> Count:
    """Return the count of a method without shared parameters: the sum of count(n, d, k)."""
    return lambda n, shapes, options: total(shapes, lambda d, k: count(n, d, k))


def total(shapes: Shapes, count: Callable[[int, int], int]) -> int:
    """Return the sum of count(d, k) over all matrices; each distinct shape is evaluated once."""
    return sum(times * count(d, k) for (d, k), times in Counter(shapes.values()).items())


def smallest_side(shapes: Shapes, options: Options) -> int:
    """Return the smallest side of all matrices, the largest rank that all of them can have."""
    return min(min(shape) for shape in shapes.values())


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, ascending."""
    low = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return low + [number // n for n in reversed(low) if n * n != number]
