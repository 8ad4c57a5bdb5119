"""What a row of the adapter table says about a method. No torch.

The rank of a cell is a budget: every method turns it into its own capacity setting so that its
trained parameters match LoRA's r (d + k) per adapted matrix as nearly as the method allows. Here
d is the number of outputs of a matrix, k of inputs; a shape is always (d, k).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Shape = tuple[int, int]  # (outputs d, inputs k)
Shapes = Mapping[str, Shape]  # by module name
Options = Mapping[str, Any]
Count = Callable[[int, Shapes, Options], int]  # trained parameters at a capacity, in closed form

PRECISIONS = ("fp32", "bf16", "int8", "nf4")
UNQUANTISED = ("fp32", "bf16")


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a method: its default, and what else it may be."""

    default: Any
    accepts: Callable[[Any], bool]
    allowed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The capacity of a method: one whole number, and how many parameters train at it.

    setting: its name in the method's PEFT configuration.
    count: trained parameters at a value of it, never falling in it.
    largest: the largest value that these shapes allow.
    step: it must be a multiple of this.
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
class Choice:
    """A capacity that has no even steps: divisors, or several settings at once.

    setting: its name in documents.
    candidates: the settings that these shapes allow, given LoRA's rank; the first of equals wins.
    count: trained parameters under one of them.
    """

    setting: str
    candidates: Callable[[int, Shapes, Options], Iterable[dict[str, Any]]]
    count: Callable[[Mapping[str, Any], Shapes, Options], int]

    def chosen(self, rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
        """Return the candidate whose count is nearest to LoRA's at `rank`."""
        asked = lora_count(rank, shapes)
        return min(
            self.candidates(rank, shapes, options),
            key=lambda settings: abs(self.count(settings, shapes, options) - asked),
        )

    def parameters(self, rank: int, shapes: Shapes, options: Options) -> int:
        """Return how many parameters train at a LoRA rank."""
        return self.count(self.chosen(rank, shapes, options), shapes, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One kind of adapter, as far as it can be known without torch.

    paper: arXiv id.
    config: its PEFT configuration class: a name in `peft`, or "module:Class"; "" for none.
    options: what a level may set; each goes to the configuration under its own name.
    names: the names there of the options that have another one here; "" where it is not passed on.
    size: how a rank becomes its capacity; None where it has none, so no budget can be matched.
    fixed: further arguments of the configuration.
    complete: from all of these and the shapes, the arguments, where they differ.
    arguments: instead of all of these: the configuration's arguments at a rank.
    capacity: the canonical form of the arguments, part of a run's identity: equal means same run.
    parameters: what the adapter adds and trains, in closed form; by default size.count.
    formula: the same in words, for a d x k matrix.
    seed: the setting of the configuration that seeds what it draws and never trains.
    quiet: how a warning of PEFT's begins that the row has an answer to.
    adapts: whether it adds weights; if not, rank and placement mean nothing.
    placed: whether placement says which matrices it changes.
    only: endings of the modules that it adapts among those placed; all of them if there are none.
    trains_norms: whether it trains copies of the normalisation layers.
    matched: whether it can reach LoRA's budget within a tenth at usual ranks.
    starts_at_base: whether its first outputs are the base's.
    merges: whether it can be folded into the base's weights exactly.
    conv1d: whether it adapts GPT-2's transposed layers.
    packs: whether packed examples stay apart under it.
    changes_base: whether it takes something out of the base's weights when it is added.
    under: what it trains under an optimizer that holds a part of it fixed, by the optimizer's kind.
    inits, optimizers, precisions: the levels of those factors that it truly carries out.
    """

    paper: str = ""
    config: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    size: Size | Choice | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    complete: Callable[[dict[str, Any], Shapes], dict[str, Any]] | None = None
    arguments: Callable[[int, Shapes, Options], dict[str, Any]] | None = None
    capacity: Callable[[int, Shapes, Options], dict[str, Any]] | None = None
    parameters: Count | None = None
    formula: str = ""
    seed: str = ""
    quiet: str = ""
    adapts: bool = True
    placed: bool = True
    only: tuple[str, ...] = ()
    trains_norms: bool = False
    trains_base: bool = False
    matched: bool = True
    starts_at_base: bool = True
    merges: bool = True
    conv1d: bool = True
    packs: bool = True
    changes_base: bool = False
    under: Mapping[str, Count] = field(default_factory=dict)
    inits: tuple[str, ...] = ("default",)
    optimizers: tuple[str, ...] = ("adamw",)
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
        if optimizer in self.under:
            return self.under[optimizer](rank, shapes, options)
        if self.parameters is not None:
            return self.parameters(rank, shapes, options)
        return self.size.parameters(rank, shapes, options) if self.size else 0


@dataclass(frozen=True, slots=True)
class Budget:
    """Adapter parameters: LoRA's at the same rank and targets, and the method's own."""

    asked: int
    got: int
    status: Literal["matched", "unmatched"]

    @property
    def ratio(self) -> float:
        """The method's own count over LoRA's."""
        return self.got / self.asked


def lora_count(rank: int, shapes: Shapes) -> int:
    """Return LoRA's trained parameters, r (d + k) per matrix."""
    return rank * sum(d + k for d, k in shapes.values())


def closest(count: Callable[[int], int], asked: int, largest: int) -> int:
    """Return n in [1, largest] with count(n), which must never fall, nearest to `asked`."""
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
    """Return the count of a method whose matrices share nothing: the sum of count(n, d, k)."""
    return lambda n, shapes, options: total(shapes, lambda d, k: count(n, d, k))


def total(shapes: Shapes, count: Callable[[int, int], int]) -> int:
    """Return the sum of count(d, k) over all matrices, each distinct shape looked at once."""
    return sum(times * count(d, k) for (d, k), times in Counter(shapes.values()).items())


def smallest_side(shapes: Shapes, options: Options) -> int:
    """Return the smallest side of all matrices: the largest rank that each of them can have."""
    return min(min(shape) for shape in shapes.values())


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, ascending."""
    low = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return low + [number // n for n in reversed(low) if n * n != number]


# --- what an option may be


def is_number(value: Any) -> bool:
    """Return whether `value` is a number and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Return whether `value` is a finite number above zero."""
    return is_number(value) and 0 < value < math.inf


def flag(default: bool = False) -> Option:
    """Return an option that is true or false."""
    return Option(default, lambda v: isinstance(v, bool), "true or false")


def positive(default: float) -> Option:
    """Return an option that is a number above zero."""
    return Option(default, is_positive, "positive")


def share(default: float = 0.0) -> Option:
    """Return an option that is a probability short of one."""
    return Option(default, lambda v: is_number(v) and 0 <= v < 1, "a number in [0, 1)")


def whole(default: int, *, least: int = 1) -> Option:
    """Return an option that is a whole number."""
    return Option(
        default,
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least,
        f"a whole number of at least {least}",
    )


def one_of(default: str, *others: str) -> Option:
    """Return an option that is one of a few words."""
    words = (default, *others)
    return Option(default, lambda v: v in words, f"one of {', '.join(words)}")
