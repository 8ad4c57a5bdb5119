"""A model in parts on several devices while it trains: FSDP2, `execution.sharding=full`.

Each process holds a part of every weight, of its gradient and of its optimizer's state. A block of
the model is gathered when it is computed and let go afterwards. Before and after training a process
has the whole model; while it trains, its blocks are those of FSDP.

accelerate's own plugin would replace the parameters of an optimizer that was made for the whole
model, which optimizers with fp32 copies do not survive, and takes no processes on a CPU.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils import _pytree

from ablate.models.compiled import blocks
from ablate.training.distributed import processes
from ablate.training.loss import TokenLoss

# FSDP looks for the tensors that a backward pass starts from in what a forward pass returns.
_pytree.register_dataclass(TokenLoss)


@contextmanager
def over_devices(
    wrapped: nn.Module, model: nn.Module, accelerator: Any, sharding: str
) -> Iterator[nn.Module]:
    """Yield `wrapped` ready to train on the devices of all processes; afterwards `model` is whole.

    After an error a model in parts stays so: another process may not be there to give its own.

    Args:
        wrapped: the module whose forward pass begins and ends a pass.
        model: the model in it.
        accelerator: of this process.
        sharding: none: every process has the whole model, and gradients are averaged (DDP); full:
            a part of it.
    """
    if sharding == "none":
        with warnings.catch_warnings():  # accelerate has no name yet for the setting's new one
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
            ready: nn.Module = accelerator.prepare_model(wrapped)
        yield ready
        return
    plain = _cut(wrapped, model, accelerator.device)
    yield wrapped
    _make_whole(model, plain)
    model.to(accelerator.device)


def _cut(wrapped: nn.Module, model: nn.Module, device: torch.device) -> dict[str, nn.Module]:
    """Cut the weights of `wrapped` into parts; return what its blocks were, without weights."""
    mesh = init_device_mesh(device.type, (processes(),))
    repeated = {id(block) for block in blocks(model)}
    chosen = {name: one for name, one in model.named_modules() if id(one) in repeated}
    plain = {name: _hollow(module) for name, module in chosen.items()}
    for module in chosen.values():
        fully_shard(module, mesh=mesh)
    fully_shard(wrapped, mesh=mesh)
    return plain


def _hollow(module: nn.Module) -> nn.Module:
    """Return a copy of `module` whose parameters take no memory."""
    empty: dict[int, Any] = {}
    for parameter in module.parameters():
        meta = torch.empty_like(parameter, device="meta")
        empty[id(parameter)] = nn.Parameter(meta, requires_grad=parameter.requires_grad)
    return copy.deepcopy(module, empty)


def _make_whole(model: nn.Module, plain: Mapping[str, nn.Module]) -> None:
    """Gather all weights, every process in the same order, and put `plain` blocks in place."""
    whole: dict[nn.Parameter, nn.Parameter] = {}
    for name, module in plain.items():
        _fill(module, model.get_submodule(name), whole)
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, module)
    _fill(model, model, whole)


def _fill(into: nn.Module, module: nn.Module, whole: dict[nn.Parameter, nn.Parameter]) -> None:
    """Set the tensors of `into` to those of `module`, gathered."""
    for place, source in zip(into.modules(), module.modules(), strict=True):
        for name, parameter in source._parameters.items():
            if not isinstance(parameter, DTensor):
                continue
            if parameter not in whole:  # an embedding that is the head too is gathered once
                full = parameter.detach().full_tensor()
                whole[parameter] = nn.Parameter(full, parameter.requires_grad)
            place._parameters[name] = whole[parameter]
        place._buffers.update(source._buffers)
