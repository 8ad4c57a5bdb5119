"""Which levels of the factors around an adapter it truly carries out. No torch.

PEFT falls back in silence where a combination has no meaning: KaSA on 4-bit weights is plain LoRA,
LoRA-FA on VeRA is plain AdamW. A cell whose name promises more than it does is worse than a missing
one, so `check` refuses it with the reason, before anything is trained.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ablate.adapters import registry
from ablate.adapters.method import (
    PRECISIONS,
    UNQUANTISED,
    Option,
    Options,
    Shapes,
    is_positive,
    one_of,
    positive,
    whole,
)
from ablate.config.schema import Cell, Init, Optimizer
from ablate.errors import UserError, nearest, unknown

Fits = Callable[[int, Shapes], str]  # what is wrong with a rank on these matrices; "" if nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A kind of init or of optimizer, as far as it can be known without torch.

    options: what a level may set.
    precisions: of the base's weights that it works on.
    conv1d: whether it works on GPT-2's transposed layers.
    fits: what is wrong with a rank on the adapted matrices.
    changes_base: whether it takes the adapter's start out of the base's weights.
    freezes: the parts of an adapter that it holds fixed.
    """

    options: Mapping[str, Option] = field(default_factory=dict)
    precisions: tuple[str, ...] = PRECISIONS
    conv1d: bool = True
    fits: Fits = lambda rank, shapes: ""
    changes_base: bool = False
    freezes: tuple[str, ...] = ()


def _even(rank: int, shapes: Shapes) -> str:
    return "needs an even rank" if rank % 2 else ""


def _twice(sides: Callable[[int, int], int]) -> Fits:
    """Return the rule that twice the rank fits into a side of every matrix."""

    def fits(rank: int, shapes: Shapes) -> str:
        name, (d, k) = min(shapes.items(), key=lambda item: sides(*item[1]))
        if 2 * rank <= sides(d, k):
            return ""
        return f"needs a rank of at most {sides(d, k) // 2} for {name} ({d} x {k})"

    return fits


_ITERATIONS = Option(
    None,
    lambda v: v is None or whole(1).accepts(v),
    "a positive whole number, or null: the exact decomposition",
)
_COSINE = Option(0.99, lambda v: is_positive(v) and v <= 1, "a number in (0, 1]")
_BATCHES = whole(8)  # of the run's first; the data that a start may look at

# Starts of LoRA's factors. On quantised weights PEFT refuses most of those that look at a weight;
# OLoRA would quantise what it leaves of it a second time.
INITS: Mapping[str, Rule] = {
    "default": Rule(),
    "gaussian": Rule(),
    "orthogonal": Rule(fits=_even, precisions=UNQUANTISED),
    "pissa": Rule(options={"iterations": _ITERATIONS}, precisions=UNQUANTISED, changes_base=True),
    "olora": Rule(precisions=UNQUANTISED, conv1d=False, changes_base=True),
    "eva": Rule(
        options={"batches": _BATCHES, "converged": _COSINE},
        precisions=UNQUANTISED,
        fits=_twice(lambda d, k: k),
    ),
    "corda": Rule(options={"batches": _BATCHES}, precisions=UNQUANTISED, changes_base=True),
    "lora_ga": Rule(
        options={
            "batches": _BATCHES,
            "direction": one_of("ArB2r", "A2rBr", "ArBr", "random"),
            "scale": one_of("stable", "weight_svd", "gd_scale", "unit"),
            "gamma": positive(16.0),
        },
        precisions=UNQUANTISED,
        conv1d=False,
        fits=_twice(min),
        changes_base=True,
    ),
    "loftq": Rule(precisions=("nf4",)),
}

OPTIMIZERS: Mapping[str, Rule] = {
    "adamw": Rule(),
    "lora_plus": Rule(options={"ratio": positive(16.0)}),
    "lora_fa": Rule(freezes=("lora_A",)),
    "riemannian": Rule(options={"damping": positive(0.01)}),
}


def init_of(cell: Cell) -> tuple[Rule, dict[str, Any]]:
    """Return the rule of the cell's init and all of its options.

    Raises:
        UserError: there is no such rule, or an option is wrong.
    """
    return _told("init", cell.init, INITS)


def optimizer_of(optimizer: Optimizer) -> tuple[Rule, dict[str, Any]]:
    """Return the rule of an optimizer and all of its options.

    Raises:
        UserError: there is no such rule, or an option is wrong.
    """
    return _told("optimizer", optimizer, OPTIMIZERS)


def check(cell: Cell, *, architecture: str, shapes: Shapes | None = None) -> None:
    """Refuse a combination of adapter, init, optimizer and base precision that is not what it says.

    Args:
        cell: the cell; its adapter's options are checked by `table.check`.
        architecture: of the base model, as transformers names it.
        shapes: of its linear layers; without them, what depends on sizes is not checked.

    Raises:
        UserError: one line with the setting, the reason and what is allowed.
    """
    init, _ = init_of(cell)
    optimizer_of(cell.optimizer)
    if not cell.is_base:
        row = registry.method(cell.adapter)
        _carries_out(cell, "init", cell.init.kind, row.inits)
        _carries_out(cell, "optimizer", cell.optimizer.kind, row.optimizers)
        _carries_out(cell, "base_precision", cell.base_precision, row.precisions)
        _check_init(cell, init, architecture)
        _check_around(cell, architecture)
        if shapes is not None and (wrong := init.fits(cell.rank, registry.adapted(cell, shapes))):
            raise UserError(f"rank={cell.rank}: init={cell.init.name} {wrong}")
    _check_quantised(cell)


def _told(
    factor: str, asked: Init | Optimizer, rules: Mapping[str, Rule]
) -> tuple[Rule, dict[str, Any]]:
    """Return the rule that is asked for, and its options: as given, else their defaults."""
    if asked.kind not in rules:
        raise unknown(f"{factor}.kind", asked.kind, rules)
    known = rules[asked.kind].options
    for name, value in asked.options.items():
        if name not in known:
            raise UserError(
                f"{factor}.options.{name}: {asked.kind} has no such option, only "
                f"{', '.join(sorted(known)) or 'none'}.{nearest(name, known)}"
            )
        if not known[name].accepts(value):
            raise UserError(f"{factor}.options.{name}={value}: must be {known[name].allowed}")
    filled = {name: asked.options.get(name, option.default) for name, option in known.items()}
    return rules[asked.kind], {
        name: float(value) if isinstance(known[name].default, float) else value
        for name, value in filled.items()
    }


def _carries_out(cell: Cell, factor: str, level: str, allowed: tuple[str, ...]) -> None:
    if level not in allowed:
        raise UserError(
            f"{factor}={level}: adapter={cell.adapter.name} does not carry it out; with it "
            f"{factor} must be {' or '.join(allowed)}"
        )


def _check_init(cell: Cell, init: Rule, architecture: str) -> None:
    if cell.base_precision not in init.precisions:
        raise UserError(
            f"base_precision={cell.base_precision}: not with init={cell.init.name}; with it "
            f"base_precision must be {' or '.join(init.precisions)}"
        )
    if architecture.startswith("GPT2") and not init.conv1d:
        raise UserError(
            f"init={cell.init.name}: is not made for GPT-2's transposed layers "
            f"(model={cell.model.name})"
        )


def _check_around(cell: Cell, architecture: str) -> None:
    row = registry.method(cell.adapter)
    if architecture.startswith("GPT2") and not row.conv1d:
        raise UserError(
            f"adapter={cell.adapter.name}: does not adapt GPT-2's transposed layers "
            f"(model={cell.model.name})"
        )
    if cell.execution.layout == "packed" and not row.packs:
        raise UserError(
            f"execution.layout=packed: with adapter={cell.adapter.name} packed examples would see "
            "each other; use padded or auto"
        )
    if (refuse := _REFUSALS.get(cell.adapter.kind)) and (
        reason := refuse(cell, registry.settings(cell.adapter))
    ):
        raise UserError(reason)


def _check_quantised(cell: Cell) -> None:
    if cell.base_precision in UNQUANTISED:
        return
    if cell.execution.device == "cpu":
        raise UserError(
            f"base_precision={cell.base_precision}: needs a GPU, and execution.device=cpu; use "
            f"{' or '.join(UNQUANTISED)}"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"base_precision={cell.base_precision}: needs bitsandbytes, which is not installed; "
            'pip install "ablate[gpu]"'
        )


# --- what depends on a method's own options or on another factor


def _lora(cell: Cell, options: Options) -> str:
    if options["dora"] and cell.optimizer.kind == "lora_fa":
        return (
            f"optimizer=lora_fa: trains pairs of factors, and adapter={cell.adapter.name} has "
            "magnitudes beside them; with it optimizer must be adamw, lora_plus or riemannian"
        )
    return ""


def _alora(cell: Cell, options: Options) -> str:
    if cell.dataset.template == "plain" or cell.dataset.format == "text":
        setting = "template=plain" if cell.dataset.template == "plain" else "format=text"
        return (
            f"adapter={cell.adapter.name}: acts from the template's last words before an answer "
            f"on, and dataset.{setting} has none; use dataset.template=alpaca or chat"
        )
    return ""


_REFUSALS: Mapping[str, Callable[[Cell, Options], str]] = {"lora": _lora, "alora": _alora}


def folds(cell: Cell) -> bool:
    """Return whether what the cell trains can be folded into the base's weights, as numbers."""
    return registry.method(cell.adapter).merges and cell.base_precision in UNQUANTISED
