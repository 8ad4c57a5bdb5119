"""The precision that a model is scored in, `evaluate.precision`.

    fp32   as its weights are, products of fp32 in full: TF32 is off unless the environment asks
           for it (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE)
    bf16   base weights and activations in bfloat16, adapters under autocast, as lm-eval scores a
           model that was loaded in bfloat16; log-likelihoods are summed in fp32 and above

In bf16 a log-likelihood depends on what shares its batch, by rounding: that an item has the numbers
which it would have by itself holds in fp32 alone. `BF16_MEAN` and `BF16_MOST` bound how far the
log-likelihood of a token is from that in fp32; tests hold it there.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ablate.config.schema import Precision
from ablate.models.load import computing_in

BF16_MEAN, BF16_MOST = 0.05, 0.4  # nats a token, for the micro models; larger ones are closer
TF32_ASKED = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"


@contextmanager
def computed_in(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Compute with `model` in `precision` inside the block; it comes back as it was."""
    device = next(model.parameters()).device.type
    if precision == "bf16":
        with _lowered(model), computing_in(model, "bf16"), torch.autocast(device, torch.bfloat16):
            yield
        return
    with nullcontext() if os.environ.get(TF32_ASKED) == "1" else _without_tf32():
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    with warnings.catch_warnings():  # some versions of torch announce another name for it
        warnings.filterwarnings("ignore", message="Please use the new API settings")
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _lowered(model: nn.Module) -> Iterator[None]:
    """Hold the base's fp32 parameters in bfloat16 inside the block.

    Autocast alone would cast them anew in every forward pass, which is most of what decoding a
    token costs. Buffers stay: rotary frequencies lose their meaning in 16 bits.
    """
    kept = [(p, p.data) for p in _base_parameters(model) if p.dtype == torch.float32]
    try:
        for parameter, _ in kept:
            parameter.data = parameter.data.bfloat16()
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def _base_parameters(model: nn.Module) -> list[Tensor]:
    """Return the parameters that are not an adapter's own, each once."""
    found: dict[int, Tensor] = {id(p): p for p in model.parameters()}
    for layer in (m for m in model.modules() if isinstance(m, BaseTunerLayer)):
        base = {id(p) for p in layer.get_base_layer().parameters()}
        for parameter in layer.parameters():
            if id(parameter) not in base:
                found.pop(id(parameter), None)
    return list(found.values())
