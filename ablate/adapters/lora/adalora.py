"""AdaLoRA (arXiv 2303.10512) during training: its orthogonality penalty and its rank schedule.

Delta-W = B diag(E) A. After a warm-up, the entries of E with the lowest importance are set to zero
along a cubic schedule until the final rank is reached; the rest of the run trains what remains.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.adalora import AdaLoraLayer
from torch import Tensor, nn

from ablate.adapters.lora.spec import phases
from ablate.adapters.options import Options
from ablate.streams import Streams
from ablate.training.hooks import Hooks, Memory, StepContext, weight_penalty

ADAPTER = "default"
IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of PEFT's allocator, by parameter
SCHEDULE = ("total_step", "tinit", "tfinal", "deltaT", "rank_pattern")  # of the configuration


def hooks(options: Options, streams: Streams) -> Hooks:
    """Return the hooks of AdaLoRA.

    Args:
        options: of the method; `initial`, `final`, `interval` and `orthogonality` are read.
        streams: not used, nothing is drawn.
    """

    weight = options["orthogonality"]

    def after_step(context: StepContext) -> None:
        tuner: Any = context.model.base_model
        if context.step == 0:
            _set_schedule(tuner.peft_config[ADAPTER], context.steps, options)
        tuner.update_and_allocate(context.step + 1)

    penalty = weight_penalty(lambda model: weight * orthogonality(model) if weight else 0.0)
    return replace(penalty, after_step=after_step, memories=(Memory(_read, _write),))


def orthogonality(model: nn.Module) -> Tensor:
    """Return the mean over all factors of ||P P' - I||, Frobenius norms.

    As in PEFT; the paper's equation 4 is the sum of their squares. PEFT adds it to the loss that
    the model itself returns, which is not the loss that is trained here.
    """
    return torch.stack([_deviation(P_RX) for P_RX in _factors(model)]).mean()


def _factors(model: nn.Module) -> Iterator[Tensor]:
    for layer in model.modules():
        if isinstance(layer, AdaLoraLayer):
            yield from (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER].T)


def _deviation(P_RX: Tensor) -> Tensor:
    identity = torch.eye(len(P_RX), device=P_RX.device, dtype=P_RX.dtype)
    return torch.linalg.matrix_norm(P_RX @ P_RX.T - identity)


def _read(model: nn.Module) -> dict[str, Any]:
    """Return the importance of every entry so far, the ranks chosen last, and the schedule."""
    tuner: Any = model.base_model
    held = {name: getattr(tuner.rankallocator, name) for name in IMPORTANCE}
    config = tuner.peft_config[ADAPTER]
    return held | {"config": {name: getattr(config, name) for name in SCHEDULE}}


def _write(model: nn.Module, held: dict[str, Any]) -> None:
    tuner: Any = model.base_model
    for name in IMPORTANCE:
        setattr(tuner.rankallocator, name, held[name])
    for name, value in held["config"].items():
        setattr(tuner.peft_config[ADAPTER], name, value)


def _set_schedule(config: object, steps: int, options: Options) -> None:
    initial, final, interval = phases(steps, options)
    schedule = {"total_step": steps, "tinit": initial, "tfinal": final, "deltaT": interval}
    for name, value in schedule.items():
        setattr(config, name, value)
