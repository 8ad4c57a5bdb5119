"""The restarts of ReMoRA (arXiv 2405.12130, section 3.3) and ReLoRA (2307.05695) in training.

A restart also clears the adapter's optimizer state (ReLoRA's paper keeps 1 % of it) and repeats the
warm-up of the learning rate, the paper's "jagged" schedule, which ends at a floor instead of at
zero. There is no full-rank training before.
"""

import math
import re
from collections.abc import Iterator

import torch
from torch import nn

from ablate.adapters.mora.restart_layer import RestartLayer
from ablate.adapters.mora.spec import restart_steps
from ablate.adapters.options import Options
from ablate.streams import Streams
from ablate.training.hooks import Hooks, Memory, StepContext

SHORT = 4  # steps of a warm-up in a stage too short for the fraction of it


def hooks(options: Options, streams: Streams) -> Hooks:
    """Return the hooks that restart a model's adapters and warm the learning rate up again.

    Args:
        options: of the method; `restarts`, `every`, `rewarmup` and `floor` are read.
        streams: each restart of each layer draws from a stream of its own.
    """
    peaked = False  # whether the schedule's own warm-up is over

    def after_backward(context: StepContext) -> None:
        nonlocal peaked
        factor = warmth(context.step, context.steps, options)
        for group in context.optimizer.param_groups:
            peak = group["initial_lr"]
            peaked = peaked or group["lr"] >= peak
            if peaked:
                group["lr"] = options["floor"] * peak + (1 - options["floor"]) * group["lr"]
            group["lr"] *= factor  # the schedule resets it after the step

    def after_step(context: StepContext) -> None:
        done = context.step + 1
        if done in restart_steps(context.steps, options):
            restart(context.model, context.optimizer, streams=streams)

    def read(model: nn.Module) -> bool:
        return peaked

    def write(model: nn.Module, held: bool) -> None:
        nonlocal peaked
        peaked = held
        for layer in _layers(model).values():
            for adapter in layer.stage:
                layer.resume(adapter)

    memories = (Memory(read, write),)
    return Hooks(after_backward=after_backward, after_step=after_step, memories=memories)


def warmth(step: int, steps: int, options: Options) -> float:
    """Return the factor of the learning rate at `step` (from 0) of a run of `steps`.

    After each restart it rises linearly from 0 to 1 over the fraction `rewarmup` of a stage. Where
    that is one step, which would be a step at rate zero and no warm-up, it rises over `SHORT` steps
    from above zero, and over half of the stage at most. The first stage has the schedule's own
    warm-up.
    """
    last = max((at for at in restart_steps(steps, options) if at <= step), default=None)
    stage = options["every"] or steps / (options["restarts"] + 1)
    length, first = math.ceil(options["rewarmup"] * stage), 0
    if length == 1:
        length, first = min(SHORT, int(stage / 2)) + 1, 1
    done = length if last is None else step - last + first
    return min(1.0, done / length) if length else 1.0


def restart(model: nn.Module, optimizer: torch.optim.Optimizer, *, streams: Streams) -> None:
    """Restart every active adapter of `model` and clear its optimizer state."""
    for name, layer in _layers(model).items():
        bare = re.sub(r"^base_model\.model\.", "", name)
        for adapter in layer.active_adapters:
            number = layer.stage_of[adapter] + 1
            layer.restart(adapter, streams.torch("restart", number, adapter, bare))
        for parameter in _adapter_parameters(layer):
            optimizer.state.pop(parameter, None)


def _layers(model: nn.Module) -> dict[str, RestartLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, RestartLayer)}


def _adapter_parameters(layer: RestartLayer) -> Iterator[nn.Parameter]:
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad and not name.startswith("base_layer."):
            yield parameter
