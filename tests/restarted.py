"""Layers and models with ReMoRA and ReLoRA adapters, and what stands in for their training."""

import peft
import torch
from peft import LoraConfig
from torch import Tensor, nn

from ablate.adapters.mora.relora import ReloraConfig, ReloraLinear
from ablate.adapters.mora.remora import RemoraConfig, RemoraLinear
from ablate.adapters.mora.restart_layer import RestartLayer
from ablate.adapters.mora.spec import GROUPS
from tests import toys
from tests.dense import base, normal

METHODS = (*GROUPS, "relora")


def assert_close(actual: Tensor, expected: Tensor, atol: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def config(method: str, r: int, **changes) -> peft.PeftConfig:
    if method == "relora":
        return ReloraConfig(r=r, lora_alpha=3 * r, **changes)
    return RemoraConfig(r=r, groups=method, **changes)


def make(method: str, d: int, k: int, r: int, *, conv: bool = False) -> RestartLayer:
    if method == "relora":
        settings = config(method, r)
        layer = ReloraLinear(base(d, k, conv=conv), "default", settings, r=r, lora_alpha=3 * r)
        return layer.double()
    return RemoraLinear(base(d, k, conv=conv), "default", config(method, r))


def own(layer: RestartLayer, adapter: str = "default") -> list[Tensor]:
    if isinstance(layer, ReloraLinear):
        return [layer.lora_A[adapter].weight, layer.lora_B[adapter].weight]
    return [layer.mora_M[adapter]]


def learn(layer: RestartLayer, seed: int, adapter: str = "default") -> None:
    """Put random numbers where training would."""
    for i, parameter in enumerate(own(layer, adapter)):
        parameter.data = normal(*parameter.shape, seed=100 * seed + i)


def draws(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def wrapped(method: str, r: int = 2) -> nn.Module:
    settings = (
        LoraConfig(r=r, lora_alpha=3 * r, target_modules="all-linear")
        if method == "lora"
        else config(method, r, target_modules="all-linear")
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(toys.llama(), settings).double()


def logits(model: nn.Module) -> Tensor:
    ids = torch.randint(toys.VOCAB, (3, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model(input_ids=ids).logits
