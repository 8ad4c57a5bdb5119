"""What a start has taken out of the base's weights: kept, given back, taken out again on loading.

PiSSA, OLoRA, CorDA and LoRA-GA move a part of each weight into the adapter, KaSA drops one:

    W = W0 - P Q                       P (D, R), Q (R, K)

PEFT forgets P Q. A saved adapter would then be put on W0 and be wrong, and a disabled one leave W
in place of the base. Here both factors stay with the layer, are saved with the adapter, and are
added back at every call while the adapter is disabled: the base's outputs up to rounding.

Letters: D outputs, K inputs, R rank.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

ADAPTER = "default"
FACTORS = ("taken_P", "taken_Q")


def layers(module: nn.Module) -> Iterator[Any]:
    """Yield the layers whose weights may have been changed."""
    return (layer for layer in module.modules() if isinstance(layer, LoraLayer))


def room(module: nn.Module) -> None:
    """Give every LoRA layer of `module` the two factors, zero, and let it give them back."""
    for layer in layers(module):
        rank, like = layer.r[ADAPTER], {"device": layer.get_base_layer().weight.device}
        layer.register_buffer(
            "taken_P", torch.zeros(layer.out_features, rank, **like), persistent=False
        )
        layer.register_buffer(
            "taken_Q", torch.zeros(rank, layer.in_features, **like), persistent=False
        )
        layer.register_forward_hook(_give_back)


@torch.no_grad()
def note(module: nn.Module) -> None:
    """Note that a start took out what its adapters now add, so that outputs are the base's.

    To be taken out again: below 32 bits PEFT rounds the adapters after it has taken them out.
    """
    for layer in layers(module):
        layer.taken_P.copy_(layer.scaling[ADAPTER] * layer.lora_B[ADAPTER].weight)
        layer.taken_Q.copy_(layer.lora_A[ADAPTER].weight)


@torch.no_grad()
def measure(module: nn.Module, originals: Mapping[str, Tensor]) -> None:
    """Note what was taken out of the `originals`, by module name, and round it to rank R."""
    for name, layer in _named(module):
        weight = layer.get_base_layer().weight
        lost_DK = _as_DK(layer, originals[name].float() - weight.float())
        U_DR, S_R, Vh_RK = _leading(lost_DK, layer.r[ADAPTER])
        layer.taken_P.copy_(U_DR * S_R)
        layer.taken_Q.copy_(Vh_RK)


@torch.no_grad()
def take(module: nn.Module, originals: Mapping[str, Tensor]) -> None:
    """Make the weights the `originals`, by module name, without what is noted."""
    for name, layer in _named(module):
        weight = layer.get_base_layer().weight
        taken = _as_DK(layer, layer.taken_P @ layer.taken_Q)
        weight.data = (originals[name].float() - taken).to(weight.dtype)


def copies(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of the weights of the modules in `names`."""
    weights = model.state_dict(keep_vars=True)
    return {name: weights[f"{name}.weight"].detach().clone() for name in names}


def _named(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            yield name.removeprefix("base_model.model."), layer


def _as_DK(layer: Any, weight: Tensor) -> Tensor:
    """Return a weight as it is stored, from (D, K), or the other way round."""
    return weight.T if layer.fan_in_fan_out else weight


def _leading(X_DK: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(X_DK, full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank]


def _give_back(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Return the output of the base, where the adapter is disabled."""
    if not layer.disable_adapters:
        return None
    x_K = args[0].to(layer.taken_Q.dtype)
    return output + F.linear(F.linear(x_K, layer.taken_Q), layer.taken_P).to(output.dtype)
