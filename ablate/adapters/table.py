"""Which adapters there are, what each may be told and how large it is at a LoRA rank. No torch.

The rank of a cell is a budget: every method turns it into its own capacity setting so that its
trained parameters match LoRA's r (d + k) per adapted matrix as nearly as the method allows. Here
d is the number of outputs of a matrix, k of inputs; a shape is always (d, k).

A family of methods is a module beside this one; a method is one row of `KINDS`; a level is one
YAML file in conf/adapter that names a row and sets its options.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ablate.config import Adapter
from ablate.errors import UserError, nearest, unknown

Shape = tuple[int, int]  # (outputs d, inputs k)
Shapes = Mapping[str, Shape]  # by module name
Options = Mapping[str, Any]

ALL_LINEAR = "all-linear"  # every linear layer of the decoder; the head is not one of them


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a method: its default, and what else it may be."""

    default: Any
    accepts: Callable[[Any], bool]
    allowed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One kind of adapter, as far as it can be known without torch."""

    options: Mapping[str, Option]
    capacity: Callable[[int, Shapes, Options], dict[str, Any]]  # canonical: equal means same run
    parameters: Callable[[int, Shapes, Options], int]  # what the adapter adds, in closed form
    adapts: bool = True  # adds weights to targeted matrices; if not, rank and targets mean nothing
    trains_base: bool = False


class Sizes(Protocol):
    """What must be known of a base model to count what is trained in it."""

    @property
    def linear_shapes(self) -> Mapping[str, Shape]:
        """Shape (d, k) of every linear layer of the decoder."""

    @property
    def parameters(self) -> int:
        """All parameters, a tied matrix counted once."""

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding, and of the head where it is not tied to it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Adapter parameters: LoRA's at the same rank and targets, and the method's own."""

    asked: int
    got: int

    @property
    def ratio(self) -> float:
        """The method's own count over LoRA's."""
        return self.got / self.asked


def check(adapter: Adapter, rank: int, shapes: Shapes) -> None:
    """Refuse what cannot be built on a model whose linear layers have these `shapes`.

    Raises:
        UserError: an unknown kind, option or target, an option out of range, or a rank above the
            smaller side of an adapted matrix.
    """
    settings(adapter)
    chosen = targets(adapter, shapes)
    if not KINDS[adapter.kind].adapts:
        return
    name = min(chosen, key=lambda module: min(chosen[module]))
    d, k = chosen[name]
    if rank > min(d, k):
        raise UserError(
            f"rank={rank}: must be at most {min(d, k)}, the smaller side of {name} ({d} x {k})"
        )


def settings(adapter: Adapter) -> dict[str, Any]:
    """Return every option of the adapter's kind: as given, else its default.

    Raises:
        UserError: an unknown kind or option, or a value that is not allowed.
    """
    if adapter.kind not in KINDS:
        raise unknown("adapter.kind", adapter.kind, KINDS)
    known = KINDS[adapter.kind].options
    for name in adapter.options:
        if name not in known:
            raise UserError(
                f"adapter.options.{name}: kind {adapter.kind} has no such option, only "
                f"{', '.join(sorted(known)) or 'none'}.{nearest(name, known)}"
            )
    filled = {}
    for name, option in known.items():
        value = adapter.options.get(name, option.default)
        if not option.accepts(value):
            raise UserError(f"adapter.options.{name}={value}: must be {option.allowed}")
        filled[name] = float(value) if isinstance(option.default, float) else value
    return filled


def targets(adapter: Adapter, shapes: Shapes) -> dict[str, Shape]:
    """Return the adapted modules among `shapes`: all, or those whose dotted name ends as asked.

    Raises:
        UserError: a target that matches no module, or targets for a kind that has none.
    """
    if adapter.targets == ALL_LINEAR:
        return dict(shapes)
    if not KINDS[adapter.kind].adapts:
        raise UserError(
            f"adapter.targets={adapter.targets}: kind {adapter.kind} has no targets; "
            f"must be {ALL_LINEAR}"
        )
    wanted = (adapter.targets,) if isinstance(adapter.targets, str) else adapter.targets
    if not wanted:
        raise UserError(f"adapter.targets={list(wanted)}: must name a module, or {ALL_LINEAR}")
    for target in wanted:
        if not any(_ends(name, target) for name in shapes):
            leaves = {name.rpartition(".")[2] for name in shapes}
            raise unknown("adapter.targets", target, {ALL_LINEAR, *leaves})
    return {n: s for n, s in shapes.items() if any(_ends(n, target) for target in wanted)}


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def capacity(adapter: Adapter, rank: int, shapes: Shapes) -> dict[str, Any]:
    """Return the adapter as part of a run's identity: equal results mean equal adapters.

    Names and spellings are gone: rank under full tuning, ranks that round to one capacity, an alpha
    that gives the same scale, targets that select the same modules.
    """
    method = KINDS[adapter.kind]
    chosen = targets(adapter, shapes)
    found = {"kind": adapter.kind, **method.capacity(rank, chosen, settings(adapter))}
    if method.adapts:
        found["targets"] = ALL_LINEAR if len(chosen) == len(shapes) else sorted(chosen)
    return found


def budget(adapter: Adapter, rank: int, shapes: Shapes) -> Budget | None:
    """Return the adapter's parameters beside LoRA's; None for a kind without a rank."""
    method = KINDS[adapter.kind]
    if not method.adapts:
        return None
    chosen = targets(adapter, shapes)
    asked = rank * sum(d + k for d, k in chosen.values())
    return Budget(asked=asked, got=method.parameters(rank, chosen, settings(adapter)))


def trainable_parameters(adapter: Adapter, rank: int, sizes: Sizes, *, embeddings: str) -> int:
    """Return the number of parameters that train in a model of these `sizes`, in closed form."""
    method = KINDS[adapter.kind]
    if not (method.adapts or method.trains_base):
        return 0
    chosen = targets(adapter, sizes.linear_shapes)
    body = sizes.parameters - sizes.embedding_parameters if method.trains_base else 0
    ends = sizes.embedding_parameters if embeddings == "trained" else 0
    return body + ends + method.parameters(rank, chosen, settings(adapter))


# --- LoRA (arXiv 2106.09685), rsLoRA (2312.03732), DoRA (2402.09353)


def lora_alpha(rank: int, options: Options) -> float:
    """Return alpha: the constant where one is given, else a multiple of the rank."""
    constant = options["alpha"]
    return float(options["alpha_over_rank"] * rank if constant is None else constant)


def _lora_capacity(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    divisor = math.sqrt(rank) if options["rslora"] else rank
    return {
        "r": rank,
        "scale": float(f"{lora_alpha(rank, options) / divisor:.12g}"),
        "dora": options["dora"],
        "dropout": options["dropout"],
    }


def _lora_parameters(rank: int, shapes: Shapes, options: Options) -> int:
    magnitudes = 1 if options["dora"] else 0  # DoRA: one per output
    return sum(rank * (d + k) + magnitudes * d for d, k in shapes.values())


# --- MoRA (arXiv 2405.12130)

# Rotation below this share of the model's width, sharing from it on. The paper states no threshold:
# it rotates at r = 8 of 4096 (1/512 of the width) and shares at 256 of 4096 and 128 of 2048 (1/16).
SHARING_FROM = 1 / 128


def square_side(rank: int, shape: Shape, kind: str) -> int:
    """Return the side q of MoRA's square matrix on a `shape`: floor(sqrt((d + k) r)), section 3.2.

    Rotation pairs the entries of a group and takes the next even number below. A side above both
    d and k would hold weights that no input reaches, so max(d, k) is the largest.
    """
    d, k = shape
    side = min(math.isqrt((d + k) * rank), max(d, k))
    return max(2, side - side % 2) if kind == "rotation" else side


def mora_type(rank: int, shapes: Shapes, options: Options) -> str:
    """Return sharing or rotation; `auto` decides once for the whole model, by rank over width."""
    if options["type"] != "auto":
        return str(options["type"])
    width = min(k for _, k in shapes.values())
    return "sharing" if rank >= SHARING_FROM * width else "rotation"


def _mora_capacity(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    kind = mora_type(rank, shapes, options)
    distinct = sorted(set(shapes.values()))
    return {
        "type": kind,
        "q": {f"{d}x{k}": square_side(rank, (d, k), kind) for d, k in distinct},
        "dropout": options["dropout"],
    }


def _mora_parameters(rank: int, shapes: Shapes, options: Options) -> int:
    kind = mora_type(rank, shapes, options)
    return sum(square_side(rank, shape, kind) ** 2 for shape in shapes.values())


# --- the rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and 0 < value < math.inf


_FLAG = Option(False, _is_flag, "true or false")
_DROPOUT = Option(0.0, lambda v: _is_number(v) and 0 <= v < 1, "a number in [0, 1)")


def _no_adapter(*, trains_base: bool) -> Method:
    return Method(
        options={},
        capacity=lambda rank, shapes, options: {},
        parameters=lambda rank, shapes, options: 0,
        adapts=False,
        trains_base=trains_base,
    )


_TYPES = ("sharing", "rotation", "auto")

KINDS: dict[str, Method] = {
    "none": _no_adapter(trains_base=False),
    "full": _no_adapter(trains_base=True),
    "lora": Method(
        options={
            "alpha": Option(
                None,
                lambda v: v is None or _is_positive(v),
                "positive, or null: alpha_over_rank x r",
            ),
            "alpha_over_rank": Option(2.0, _is_positive, "positive"),
            "dropout": _DROPOUT,
            "rslora": _FLAG,
            "dora": _FLAG,
        },
        capacity=_lora_capacity,
        parameters=_lora_parameters,
    ),
    "mora": Method(
        options={
            "type": Option("sharing", _TYPES.__contains__, f"one of {', '.join(_TYPES)}"),
            "dropout": _DROPOUT,
        },
        capacity=_mora_capacity,
        parameters=_mora_parameters,
    ),
}
