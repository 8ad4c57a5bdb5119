"""Sets the initial values of three-factor adapters in a model, by the rule of their method.

Letters: D outputs, K inputs.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from ablate.adapters.init.calibration import BATCHES
from ablate.adapters.init.context import InitContext
from ablate.adapters.three_factor.layer import ThreeFactorLinear
from ablate.adapters.three_factor.rules import Given
from ablate.adapters.three_factor.spec import pair_size
from ablate.errors import UserError
from ablate.streams import Streams


def draw(module: nn.Module, context: InitContext) -> None:
    """Start every active adapter from its rule; the rules here need no data."""
    start(module, context.streams)


def from_gradient(module: nn.Module, context: InitContext) -> None:
    """Start every active adapter from the loss's gradient over the first batches (LoRA-SB)."""
    names = [name for name, _ in layers(module)]
    calibration = context.calibration
    gradients = calibration.gradients(names, BATCHES)
    start(module, context.streams, gradients, first_rate=calibration.first_rate())


def layers(module: nn.Module) -> Iterator[tuple[str, ThreeFactorLinear]]:
    """Yield the three-factor layers with their names in the base model."""
    for name, layer in module.named_modules():
        if isinstance(layer, ThreeFactorLinear):
            yield re.sub(r"^base_model\.model\.", "", name), layer


def start(
    module: nn.Module,
    streams: Streams,
    gradients: Mapping[str, Tensor] | None = None,
    *,
    first_rate: float = 0.0,
) -> None:
    """Fill the active adapters of `module` by their start rules.

    Args:
        module: a model with the base model's own weights.
        streams: each random factor of each layer draws from a stream of its own.
        gradients: of the loss with respect to the base weights, (d, k), by module name.
        first_rate: of the run, for starts that imitate its first update.

    Raises:
        UserError: a rule needs a gradient that was not given.
    """
    for name, layer in layers(module):
        for adapter in layer.active_adapters:
            if adapter in layer.held:
                given = _given(layer, adapter, name, streams, (gradients or {}).get(name))
                step = layer.settings[adapter].step
                layer.begin(adapter, replace(given, step=first_rate if step is None else step))


def _given(
    layer: ThreeFactorLinear,
    adapter: str,
    name: str,
    streams: Streams,
    gradient_DK: Tensor | None,
) -> Given:
    config = layer.settings[adapter]
    if config.start == "gradient_svd" and gradient_DK is None:
        raise UserError(
            f"adapter.options.start={config.start}: needs the gradient of {name}, which was not "
            "measured"
        )
    weight = layer.get_base_layer().weight.detach()
    W_DK = weight.T if layer.transposed else weight

    def draw(factor: str) -> Generator:
        return streams.torch("init", "three_factor", name, factor)

    return Given(
        W_DK=W_DK.to(torch.promote_types(W_DK.dtype, torch.float32)),
        N=layer.inner[adapter],
        I=pair_size(layer.inner[adapter], config.nesting),
        scale=config.scale,
        gradient_DK=None if gradient_DK is None else gradient_DK.to(W_DK.device, torch.float32),
        draw=draw,
    )
