"""The kinds of the factor `optimizer`, a row each. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ablate.adapters.method import load_attribute
from ablate.adapters.options import Option, filled, positive
from ablate.config.schema import Optimizer
from ablate.errors import UserError, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerMethod:
    """One kind of optimizer.

    make: "module:function" (model, train settings, options) that returns the torch optimizer.
    options: the options that a level may set.
    freezes: the parameter groups of an adapter, by module name, that it keeps fixed.
    state: bytes of its moments, a trained parameter.
    rounding: how it trains 16-bit weights: "master" in fp32 copies of them (`training.masters`),
        of 4 bytes a parameter; "stochastic" by rounding at random (`training.adamw_8bit`).
    bitsandbytes: whether it is one of bitsandbytes' optimizers, which run on a GPU alone.
    seeded: whether it draws random numbers: its options then hold a `seed`.
    lanes: whether its cells can train side by side (`training.lanes`).
    shards: whether it treats every number of a weight by itself, so that a part of it is enough.
    adamw_rates: whether its good rates are about AdamW's, so that rules of thumb for those hold.
    """

    make: str
    options: Mapping[str, Option] = field(default_factory=dict)
    freezes: tuple[str, ...] = ()
    state: float = 8.0  # two moments in fp32
    rounding: Literal["master", "stochastic"] = "master"
    bitsandbytes: bool = False
    seeded: bool = False
    lanes: bool = False
    shards: bool = False
    adamw_rates: bool = True


_LORA, _PAGED = "ablate.adapters.lora.optimizers", "ablate.training.paged"
EIGHT_BITS = 2 + 2 * 4 / 256  # of two moments: a byte a number, and a scale in fp32 for 256 numbers
FACTORED = 0.5  # (d + k) numbers in fp32 for d k parameters, where the smaller side is 8 at least
OPTIMIZERS: Mapping[str, OptimizerMethod] = {
    "adamw": OptimizerMethod(make="ablate.training.optim:adamw", lanes=True, shards=True),
    "adamw_8bit": OptimizerMethod(
        make="ablate.training.adamw_8bit:adamw_8bit",
        state=EIGHT_BITS,
        rounding="stochastic",
        seeded=True,
    ),
    "adafactor": OptimizerMethod(
        make="ablate.training.optim:adafactor",
        options={"clip_threshold": positive(1.0), "decay": positive(0.8)},
        state=FACTORED,
    ),
    "lion": OptimizerMethod(
        make="ablate.training.lion:lion", state=4.0, shards=True, adamw_rates=False
    ),
    "adamw_bnb_8bit": OptimizerMethod(
        make=f"{_PAGED}:adamw_bnb_8bit", state=EIGHT_BITS, bitsandbytes=True
    ),
    "paged_adamw": OptimizerMethod(make=f"{_PAGED}:paged_adamw", bitsandbytes=True),
    "paged_adamw_8bit": OptimizerMethod(
        make=f"{_PAGED}:paged_adamw_8bit", state=EIGHT_BITS, bitsandbytes=True
    ),
    "lora_plus": OptimizerMethod(
        make=f"{_LORA}:lora_plus", options={"ratio": positive(16.0)}, lanes=True, shards=True
    ),
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


def maker(optimizer: Optimizer, *, seed: int = 0, offload: bool = False) -> Any:
    """Return the function (model, train settings) that makes the torch optimizer.

    Args:
        optimizer: the level.
        seed: of the random numbers that some of them draw.
        offload: whether masters and moments of the base's own weights stay on the CPU.

    Raises:
        UserError: there is no such kind, an option is wrong, or it cannot be offloaded.
    """
    row, options = optimizer_of(optimizer)
    if row.seeded:
        options["seed"] = seed
    make = load_attribute(row.make)
    if offload:
        check_offload(optimizer)
        place = load_attribute("ablate.training.masters:offloaded")
        return lambda model, settings: place(make(model, settings, options), model)
    return lambda model, settings: make(model, settings, options)


def check_offload(optimizer: Optimizer) -> None:
    """Check that an optimizer can step on the CPU, in fp32.

    Raises:
        UserError: it cannot.
    """
    row = optimizer_of(optimizer)[0]
    if row.bitsandbytes or row.rounding == "stochastic":
        able = [k for k, v in OPTIMIZERS.items() if not (v.bitsandbytes or v.seeded)]
        raise UserError(
            f"execution.offload_optimizer=true: not with optimizer={optimizer.name}; with it "
            f"optimizer must be {' or '.join(able)}"
        )
