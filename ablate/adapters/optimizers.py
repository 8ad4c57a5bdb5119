"""The kinds of the factor `optimizer`, a row each. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ablate.adapters.method import load_attribute
from ablate.adapters.options import Option, filled, positive
from ablate.config.schema import Optimizer
from ablate.errors import unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerMethod:
    """One kind of optimizer.

    make: "module:function" (model, train settings, options) that returns the torch optimizer.
    options: the options that a level may set.
    freezes: the parameter groups of an adapter, by module name, that it keeps fixed.
    """

    make: str
    options: Mapping[str, Option] = field(default_factory=dict)
    freezes: tuple[str, ...] = ()


_LORA = "ablate.adapters.lora.optimizers"
OPTIMIZERS: Mapping[str, OptimizerMethod] = {
    "adamw": OptimizerMethod(make="ablate.training.optim:adamw"),
    "lora_plus": OptimizerMethod(make=f"{_LORA}:lora_plus", options={"ratio": positive(16.0)}),
    "lora_fa": OptimizerMethod(make=f"{_LORA}:lora_fa", freezes=("lora_A",)),
    "riemannian": OptimizerMethod(make=f"{_LORA}:riemannian", options={"damping": positive(0.01)}),
}


def optimizer_of(optimizer: Optimizer) -> tuple[OptimizerMethod, dict[str, Any]]:
    """Return the row of an optimizer and all of its options.

    Raises:
        UserError: there is no such kind, or an option is wrong.
    """
    if optimizer.kind not in OPTIMIZERS:
        raise unknown("optimizer.kind", optimizer.kind, OPTIMIZERS)
    row = OPTIMIZERS[optimizer.kind]
    return row, filled(optimizer.options, row.options, factor="optimizer", kind=optimizer.kind)


def maker(optimizer: Optimizer) -> Any:
    """Return the function (model, train settings) that makes the torch optimizer.

    Raises:
        UserError: there is no such kind, or an option is wrong.
    """
    row, options = optimizer_of(optimizer)
    make = load_attribute(row.make)
    return lambda model, settings: make(model, settings, options)
