"""The component P Q that a start subtracts from the base's weights.

PiSSA, OLoRA, CorDA and LoRA-GA move a component of each weight into the adapter, KaSA drops one:

    W = W0 - P Q                       P (D, R), Q (R, K)

PEFT does not store P Q: a saved adapter would be loaded onto W0 and be wrong, and a disabled
adapter would leave W in place of the base. Here both factors are buffers of the layer. They are
saved with the adapter, subtracted again when it is loaded, and added to the output while the
adapter is disabled, which gives the base's outputs up to rounding.

Letters: D outputs, K inputs, R rank.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

ADAPTER = "default"


def layers(module: nn.Module) -> Iterator[Any]:
    """Yield the LoRA layers, whose weights may have been changed."""
    return (layer for layer in module.modules() if isinstance(layer, LoraLayer))


def add_buffers(module: nn.Module) -> None:
    """Add the two factors, zero, to every LoRA layer, and the hook that uses them when disabled."""
    for layer in layers(module):
        rank, like = layer.r[ADAPTER], {"device": layer.get_base_layer().weight.device}
        layer.register_buffer(
            "residual_P", torch.zeros(layer.out_features, rank, **like), persistent=False
        )
        layer.register_buffer(
            "residual_Q", torch.zeros(rank, layer.in_features, **like), persistent=False
        )
        layer.register_forward_hook(_add_if_disabled)


@torch.no_grad()
def store_from_factors(module: nn.Module) -> None:
    """Store the adapter's own change as the component that was subtracted from the base.

    `subtract` must follow: below 32 bits PEFT rounds the factors only after it has subtracted them,
    and the weights would not be the base's less what the adapter adds.
    """
    for layer in layers(module):
        layer.residual_P.copy_(layer.scaling[ADAPTER] * layer.lora_B[ADAPTER].weight)
        layer.residual_Q.copy_(layer.lora_A[ADAPTER].weight)


@torch.no_grad()
def store_from_weights(module: nn.Module, originals: Mapping[str, Tensor]) -> None:
    """Store the component by which the weights differ from the `originals`, of rank R.

    Args:
        module: the model with its adapter.
        originals: the base's weights by module name, as they are stored.
    """
    for name, layer in named(module):
        weight = layer.get_base_layer().weight
        difference_DK = _as_DK(layer, originals[name].float() - weight.float())
        U_DR, S_R, Vh_RK = _leading(difference_DK, layer.r[ADAPTER])
        layer.residual_P.copy_(U_DR * S_R)
        layer.residual_Q.copy_(Vh_RK)


@torch.no_grad()
def subtract(module: nn.Module, originals: Mapping[str, Tensor]) -> None:
    """Set the weights to the `originals`, by module name, minus the stored component."""
    for name, layer in named(module):
        weight = layer.get_base_layer().weight
        residual = _as_DK(layer, layer.residual_P @ layer.residual_Q)
        weight.data = (originals[name].float() - residual).to(weight.dtype)


def copies(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of the weights of the modules in `names`."""
    weights = model.state_dict(keep_vars=True)
    return {name: weights[f"{name}.weight"].detach().clone() for name in names}


def named(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the LoRA layers with their names in the base model."""
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            yield name.removeprefix("base_model.model."), layer


def _as_DK(layer: Any, weight: Tensor) -> Tensor:
    """Return a weight in its stored layout from (D, K), or the reverse: both are a transpose."""
    return weight.T if layer.fan_in_fan_out else weight


def _leading(X_DK: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `rank` largest singular triples: U (D, R), S (R,), V^T (R, K)."""
    U, S, Vh = torch.linalg.svd(X_DK, full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank]


def _add_if_disabled(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Return the output plus P Q x while the adapter is disabled: the base's output."""
    if not layer.disable_adapters:
        return None
    x_K = args[0].to(layer.residual_Q.dtype)
    return output + F.linear(F.linear(x_K, layer.residual_Q), layer.residual_P).to(output.dtype)
