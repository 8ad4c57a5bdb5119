"""MoRA, ReMoRA (both arXiv 2405.12130) and ReLoRA (2307.05695), which restarts LoRA.

MoRA trains one square matrix between two fixed linear maps. The restarting methods add the
adapter's change to the fixed weights from time to time, and reset it.
"""

import math
from typing import Any

from ablate.adapters.lora import spec as lora
from ablate.adapters.method import Method, Shape, Shapes, lora_count
from ablate.adapters.options import Option, Options, is_positive, one_of, positive, share, whole
from ablate.errors import UserError

# Rotation for ranks below this fraction of the model's width, sharing otherwise. The paper states
# no threshold: it rotates at r = 8 of 4096 (1/512 of the width) and shares at 256 of 4096 and 128
# of 2048 (1/16).
SHARING_FROM = 1 / 128

# The maps by name, as `mora.square` has them; grouped_2 to 4 are ReMoRA's further types.
TYPES = ("sharing", "rotation", "decouple", "truncate", "grouped_2", "grouped_3", "grouped_4")

# ReMoRA's types by stage, repeated from the first. `cycle` is the released code's default,
# `alternate` the paper's. `permute` draws a new permutation of the entries at each restart, which
# removes the limit of just below 2 q on the rank of the sum under the other two. `same` is a
# control: without another grouping a restart changes only the optimizer's state.
GROUPS = {
    "cycle": ("sharing", "grouped_2", "grouped_3", "grouped_4"),
    "alternate": ("sharing", "grouped_2"),
    "permute": ("sharing",),
    "same": ("sharing",),
}


def square_side(rank: int, shape: Shape, kind: str) -> int:
    """Return the side q of MoRA's square matrix on a `shape`: floor(sqrt((d + k) r)), section 3.2.

    Rotation pairs the entries of a group, so q is rounded down to an even number. With q above both
    d and k some weights would have no effect, so max(d, k) is the upper limit.
    """
    d, k = shape
    side = min(math.isqrt((d + k) * rank), max(d, k))
    return max(2, side - side % 2) if kind == "rotation" else side


def mora_type(rank: int, shapes: Shapes, options: Options) -> str:
    """Return the type; `auto` is sharing or rotation for the whole model, by rank over width."""
    if options["type"] != "auto":
        return str(options["type"])
    width = min(k for _, k in shapes.values())
    return "sharing" if rank >= SHARING_FROM * width else "rotation"


def _arguments(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    kind = mora_type(rank, shapes, options)
    return {"r": rank, "mora_type": kind, "mora_dropout": options["dropout"]}


def _capacity(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    kind = mora_type(rank, shapes, options)
    distinct = sorted(set(shapes.values()))
    return {
        "type": kind,
        "q": {f"{d}x{k}": square_side(rank, (d, k), kind) for d, k in distinct},
        "dropout": options["dropout"],
    }


def _parameters(rank: int, shapes: Shapes, options: Options) -> int:
    kind = mora_type(rank, shapes, options)
    return sum(square_side(rank, shape, kind) ** 2 for shape in shapes.values())


# --- restarts


def _period(options: Options) -> dict[str, Any]:
    """Return the options that decide when a run restarts: `every`, if given, else `restarts`."""
    names = ("restarts",) if options["every"] is None else ("every",)
    return {name: options[name] for name in (*names, "rewarmup", "floor")}


def _is_period(value: Any) -> bool:
    return value is None or (isinstance(value, int) and is_positive(value))


RESTARTS = {
    "restarts": whole(3),  # number per run, evenly spaced: four stages at any length
    "every": Option(None, _is_period, "a positive whole number of steps, or null: by `restarts`"),
    "rewarmup": share(0.025),  # of a stage; the paper's 50 steps of 2,000
    "floor": share(0.1),  # the schedule's end over its peak, in both released codes
}


def restart_steps(steps: int, options: Options) -> list[int]:
    """Return after how many of the `steps` optimizer steps the adapters restart, never at the end.

    Raises:
        UserError: there is none, so that the method would be its plain form under another name.
    """
    if options["every"] is None:
        stages = options["restarts"] + 1
        found = {round(i * steps / stages) for i in range(1, stages)} - {0, steps}
    else:
        found = set(range(options["every"], steps, options["every"]))
    if not found:
        name = "restarts" if options["every"] is None else "every"
        raise UserError(
            f"adapter.options.{name}={options[name]}: no restart falls into a run of {steps} "
            "steps; train longer or restart more often"
        )
    return sorted(found)


def _remora_arguments(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    return {"r": rank, "groups": options["groups"], "mora_dropout": options["dropout"]}


def _remora_capacity(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    square = _capacity(rank, shapes, {**options, "type": "sharing"})
    return {**square, "groups": options["groups"], **_period(options)}


def _remora_parameters(rank: int, shapes: Shapes, options: Options) -> int:
    return _parameters(rank, shapes, {**options, "type": "sharing"})


def _relora_arguments(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    return {
        "r": rank,
        "lora_alpha": lora.alpha(rank, options),
        "lora_dropout": options["dropout"],
    }


def _relora_capacity(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    scale = float(f"{lora.alpha(rank, options) / rank:.12g}")
    return {"r": rank, "scale": scale, "dropout": options["dropout"], **_period(options)}


def _past(rank: int, shapes: Shapes, options: Options) -> int:
    """Return the size of the sums of past changes, a matrix of each weight's shape."""
    return sum(d * k for d, k in shapes.values())


ROWS = {
    "mora": Method(
        paper="2405.12130",
        config="ablate.adapters.mora.layer:MoraConfig",
        formula="q^2, q = sqrt(r (d + k))",
        options={"type": one_of(*TYPES, "auto"), "dropout": share()},
        arguments=_arguments,
        capacity=_capacity,
        parameters=_parameters,
        has_delta=True,
        lanes="ablate.adapters.mora.lanes:kind",
    ),
    "remora": Method(
        paper="2405.12130",
        config="ablate.adapters.mora.remora:RemoraConfig",
        formula="q^2, q = sqrt(r (d + k))",
        options={"groups": one_of(*GROUPS), "dropout": share(), **RESTARTS},
        arguments=_remora_arguments,
        capacity=_remora_capacity,
        parameters=_remora_parameters,
        stored=_past,
        has_delta=True,
        hooks="ablate.adapters.mora.restarts:hooks",
        schedule=restart_steps,
    ),
    "relora": Method(
        paper="2307.05695",
        config="ablate.adapters.mora.relora:ReloraConfig",
        formula="r (d + k)",
        options={
            "alpha": lora.ALPHA,
            "alpha_over_rank": positive(2.0),
            "dropout": share(),
            **RESTARTS,
        },
        arguments=_relora_arguments,
        capacity=_relora_capacity,
        parameters=lambda rank, shapes, options: lora_count(rank, shapes),
        stored=_past,
        has_delta=True,
        has_factors=True,
        start="ablate.adapters.lora.starts:draw_A",
        hooks="ablate.adapters.mora.restarts:hooks",
        schedule=restart_steps,
    ),
}
