"""LoRA (arXiv 2106.09685) and the methods that change a part of it.

rsLoRA (2312.03732) and DoRA (2402.09353) are options of `lora`. AdaLoRA (2303.10512) distributes
rank among matrices, KaSA (2412.06071) puts singular values between the factors, MiCA (2604.01694)
fixes one factor at the weight's smallest singular vectors, VeLoRA (2405.17991) stores inputs for
the backward pass in compressed form, aLoRA (2504.12397) is active only after an invocation.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ablate.adapters.method import (
    GENERAL,
    PRECISIONS,
    UNQUANTISED,
    CandidateSize,
    Method,
    Shapes,
    Size,
    each,
    lora_count,
    smallest_side,
)
from ablate.adapters.options import (
    Option,
    Options,
    flag,
    is_number,
    is_positive,
    positive,
    share,
    whole,
)
from ablate.config.schema import Cell
from ablate.errors import UserError


def alpha(rank: int, options: Options) -> float:
    """Return alpha: the constant where one is given, else a multiple of the rank."""
    constant = options["alpha"]
    return float(options["alpha_over_rank"] * rank if constant is None else constant)


ALPHA = Option(
    None, lambda v: v is None or is_positive(v), "positive, or null: alpha_over_rank x r"
)
_SCALED = {"alpha": ALPHA, "alpha_over_rank": positive(2.0), "dropout": share()}


def _weight(default: float) -> Option:
    """Return an option that is the weight of a penalty."""
    return Option(default, lambda v: is_number(v) and 0 <= v < math.inf, "at least 0")


def _scaled(rank: int, options: Options) -> dict[str, Any]:
    return {"r": rank, "lora_alpha": alpha(rank, options), "lora_dropout": options["dropout"]}


def _inputs_factor(rank: int, shapes: Shapes, options: Options) -> int:
    """Return the count of A only: r x k per matrix."""
    return sum(rank * k for _, k in shapes.values())


def _outputs_factor(rank: int, shapes: Shapes, options: Options) -> int:
    """Return the count of B only: d x r per matrix."""
    return sum(rank * d for d, _ in shapes.values())


# --- LoRA, rsLoRA, DoRA


def _lora(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    switches = {"use_rslora": options["rslora"], "use_dora": options["dora"]}
    return {**_scaled(rank, options), **switches}


def _lora_capacity(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    divisor = math.sqrt(rank) if options["rslora"] else rank
    return {
        "r": rank,
        "scale": float(f"{alpha(rank, options) / divisor:.12g}"),
        "dora": options["dora"],
        "dropout": options["dropout"],
    }


def _lora_parameters(rank: int, shapes: Shapes, options: Options) -> int:
    magnitudes = 1 if options["dora"] else 0  # DoRA: one per output
    return sum(rank * (d + k) + magnitudes * d for d, k in shapes.values())


# --- AdaLoRA: B diag(E) A. The budget is matched at the start of a run, where all parameters train;
# the paper states its budget for the end, which is `shrink` times smaller.


def _adalora_sizes(rank: int, shapes: Shapes, options: Options) -> Iterable[dict[str, Any]]:
    """Return the possible initial ranks, from two on: from one, no rank could be pruned."""
    return ({"init_r": n} for n in range(2, max(2, smallest_side(shapes, options)) + 1))


def _adalora_count(settings: Mapping[str, Any], shapes: Shapes, options: Options) -> int:
    return sum(settings["init_r"] * (d + k + 1) for d, k in shapes.values())


_ADALORA = CandidateSize(setting="init_r", candidates=_adalora_sizes, count=_adalora_count)


def _adalora(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    first = _ADALORA.chosen(rank, shapes, options)["init_r"]
    last = min(max(1, round(first / options["shrink"])), first - 1)
    return {
        "init_r": first,
        "target_r": last,
        "lora_alpha": alpha(first, options),
        "lora_dropout": options["dropout"],
        "orth_reg_weight": options["orthogonality"],
        "total_step": 1,  # set by the hooks when the run begins
    }


def _adalora_capacity(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    schedule = {name: options[name] for name in ("initial", "final", "interval")}
    return {**_adalora(rank, shapes, options), **schedule}


def phases(steps: int, options: Options) -> tuple[int, int, int]:
    """Return the number of steps before pruning, after it, and between two prunings.

    Raises:
        UserError: no step is left in which to prune.
    """
    initial, final = math.ceil(options["initial"] * steps), math.ceil(options["final"] * steps)
    if initial >= steps - final:
        raise UserError(
            f"adapter.options.initial={options['initial']} final={options['final']}: leave no step "
            f"to prune in a run of {steps}; train longer or lower them"
        )
    return initial, final, max(1, round(options["interval"] * steps))


# --- KaSA: B diag(s) A on a weight whose r smallest singular values are removed; at least one must
# remain

_KASA = Size(
    setting="r",
    count=each(lambda r, d, k: r * (d + k + 1)),
    largest=lambda shapes, options: smallest_side(shapes, options) - 1,
)


def _kasa(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    penalties = {"beta": options["beta"], "gamma": options["gamma"]}
    return {**_scaled(_KASA.at(rank, shapes, options), options), "kasa_config": penalties}


# --- MiCA: B holds the last left singular vectors of W, A trains

_MICA = Size(setting="r", count=_inputs_factor, largest=smallest_side)


def _mica(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    size = _MICA.at(rank, shapes, options)
    return {**_scaled(size, options), "init_lora_weights": "mica"}


# --- VeLoRA: inputs in groups, each stored as one number


def _velora(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    name = min(shapes, key=lambda module: shapes[module][1])
    inputs = shapes[name][1]
    if options["groups"] >= inputs:
        raise UserError(
            f"adapter.options.groups={options['groups']}: must be below {inputs}, the inputs of "
            f"{name}; with groups of one input VeLoRA is LoRA"
        )
    kept = {"num_groups": options["groups"], "scale": options["scale"]}
    return {
        **_scaled(rank, options),
        "velora_config": {**kept, "init_type": "batch_average_once"},
    }


def _plain(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    return _scaled(rank, options)


def _plain_count(rank: int, shapes: Shapes, options: Options) -> int:
    return lora_count(rank, shapes)


# --- cells that a method cannot run


def _lora_refuses(cell: Cell, options: Options) -> str:
    if options["dora"] and cell.init.kind in ("both_random", "both_zero"):
        return (
            f"init={cell.init.name}: adapter={cell.adapter.name} has magnitudes, which train and "
            "were set for a change of zero; choose adapter=lora or rslora"
        )
    if options["dora"] and cell.optimizer.kind == "lora_fa":
        return (
            f"optimizer=lora_fa: trains pairs of factors, and adapter={cell.adapter.name} has "
            "magnitudes beside them; with it optimizer must be adamw, lora_plus or riemannian"
        )
    return ""


def _alora_refuses(cell: Cell, options: Options) -> str:
    if cell.dataset.template == "plain" or cell.dataset.format == "text":
        setting = "template=plain" if cell.dataset.template == "plain" else "format=text"
        return (
            f"adapter={cell.adapter.name}: is active from the template's last words before an "
            f"answer on, and dataset.{setting} has none; use dataset.template=alpaca or chat"
        )
    return ""


ROWS = {
    "lora": Method(
        paper="2106.09685",
        config="LoraConfig",
        formula="r (d + k); DoRA: d more",
        options={**_SCALED, "rslora": flag(), "dora": flag()},
        arguments=_lora,
        capacity=_lora_capacity,
        parameters=_lora_parameters,
        parameters_under={"lora_fa": _outputs_factor},
        inits=(
            *("default", "gaussian", "orthogonal", "pissa", "olora"),
            *("eva", "corda", "lora_ga", "loftq"),
            *("milora", "both_random", "both_zero"),
        ),
        optimizers=(*GENERAL, "lora_plus", "lora_fa", "riemannian"),
        precisions=PRECISIONS,
        has_delta=lambda options: not options["dora"],  # PEFT's matrix has no magnitudes
        has_factors=True,
        start="ablate.adapters.lora.starts:draw_A",
        lanes="ablate.adapters.lora.lanes:kind",
        refuses=_lora_refuses,
    ),
    "adalora": Method(
        paper="2303.10512",
        config="AdaLoraConfig",
        formula="r (d + k + 1), at the start of a run",
        # Fractions of a run, about as in the paper for MNLI and CoLA.
        options={
            **_SCALED,
            "shrink": Option(1.5, lambda v: is_number(v) and 1 < v < math.inf, "above 1"),
            "initial": share(0.1),
            "final": share(0.5),
            "interval": share(0.001),
            "orthogonality": _weight(0.5),
        },
        size=_ADALORA,
        arguments=_adalora,
        capacity=_adalora_capacity,
        optimizers=(*GENERAL, "lora_plus"),
        precisions=PRECISIONS,
        quiet="The following rank_pattern keys",  # PEFT does not match its own pattern
        has_delta=True,
        start="ablate.adapters.lora.starts:adalora",
        hooks="ablate.adapters.lora.adalora:hooks",
        schedule=phases,
    ),
    # No has_delta: PEFT's matrix does not include the removed singular values.
    "kasa": Method(
        paper="2412.06071",
        config="LoraConfig",
        formula="r (d + k + 1)",
        options={
            **_SCALED,
            "beta": _weight(1e-4),
            "gamma": _weight(1e-3),
        },
        size=_KASA,
        arguments=_kasa,
        starts_at_base=False,  # the smallest singular values of each matrix are removed
        changes_base=True,
        conv1d=False,
        optimizers=(*GENERAL, "lora_plus"),
        precisions=UNQUANTISED,  # on 4-bit weights PEFT makes it a plain LoRA
        has_factors=True,
        start="ablate.adapters.lora.starts:kasa",
        hooks="ablate.adapters.lora.kasa:hooks",
    ),
    "mica": Method(
        paper="2604.01694",
        config="LoraConfig",
        formula="r k",
        options=_SCALED,
        size=_MICA,
        arguments=_mica,
        stored=lambda rank, shapes, options: _outputs_factor(
            _MICA.at(rank, shapes, options), shapes, options
        ),
        has_delta=True,
        has_factors=True,
    ),
    "velora": Method(
        paper="2405.17991",
        config="LoraConfig",
        formula="r (d + k)",
        options={**_SCALED, "groups": whole(16), "scale": positive(1.0)},
        arguments=_velora,
        parameters=_plain_count,
        optimizers=(*GENERAL, "lora_plus", "riemannian"),
        has_delta=True,
        has_factors=True,
        start="ablate.adapters.lora.starts:velora",
    ),
    # No has_delta: the change applies to some tokens only.
    "alora": Method(
        paper="2504.12397",
        config="LoraConfig",
        formula="r (d + k)",
        options=_SCALED,
        arguments=_plain,
        parameters=_plain_count,
        parameters_under={"lora_fa": _outputs_factor},
        merges=False,
        packs=False,
        optimizers=(*GENERAL, "lora_plus", "lora_fa", "riemannian"),
        precisions=PRECISIONS,
        has_factors=True,
        start="ablate.adapters.lora.starts:draw_A",
        config_from_data="ablate.adapters.lora.starts:invocation_tokens",
        refuses=_alora_refuses,
    ),
}
