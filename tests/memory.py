"""The memory of a training step counted, for the estimates of a plan: storages that exist."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from ablate.adapters import build
from ablate.adapters.lora.forward import lighten
from ablate.adapters.optimizers import maker
from ablate.config.schema import Cell
from ablate.data import batches
from ablate.experiment import gpu_memory
from ablate.models import files as model_files
from ablate.models.attention import by_segments
from ablate.models.load import checkpointing
from ablate.objective import objective_of
from ablate.roles import Role
from ablate.streams import Streams
from ablate.training import optim
from ablate.training.loss import TokenLossModel
from ablate.training.weighed import weigh
from tests import toys


def llama(cell: Cell, layers: int, *, device: str = "cpu", **shape: int) -> Any:
    """A model in the cell's precision with its adapter, computed as on a GPU."""
    shape = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4,
             "num_key_value_heads": 4, "vocab_size": 256} | shape  # fmt: skip
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, pad_token_id=None, **shape))
    half = cell.base_precision == "bf16"
    base = base.to(device, torch.bfloat16 if half else torch.float32).eval()
    tensors = {name: tuple(p.shape) for name, p in base.named_parameters()}
    sizes = model_files.sizes(tensors, base.config.to_dict(), place="here")
    about = model_files.ModelFiles(Path(), "hash", architecture="LlamaForCausalLM", **sizes)
    module = build.apply(base, cell, streams=Streams(0))
    if cell.adapter.kind == "lora":
        lighten(module)
    return module, about


def rows(lengths: list[int], vocabulary: int = 256) -> Any:
    """Rows of these lengths, of which half is the completion."""
    draws = np.random.default_rng(0)
    made = [
        (draws.integers(0, vocabulary, n).tolist(), [Role.INSTRUCTION] * (n // 2)
         + [Role.COMPLETION] * (n - n // 2)) for n in lengths
    ]  # fmt: skip
    return toys.tokenised(made)


class Count:
    """The bytes of the storages that autograd keeps, each once, without those of parameters."""

    def __init__(self, module: nn.Module) -> None:
        self.known = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.kept: dict[int, Tensor] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.kept[storage.data_ptr()] = tensor
        return tensor

    @property
    def total(self) -> int:
        return sum(t.untyped_storage().nbytes() for t in self.kept.values())


@contextmanager
def blocks_inputs(module: nn.Module, count: Count) -> Iterator[None]:
    """Count what checkpointed blocks keep: their input."""

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        count.keep(args[0])

    blocks = [m for name, m in module.named_modules() if name.rpartition(".")[2].isdigit()]
    handles = [block.register_forward_pre_hook(keep) for block in blocks]
    yield
    for handle in handles:
        handle.remove()


def saved(cell: Cell, data: Any, layers: int, *, checkpointed: bool = False) -> tuple[int, Any]:
    """The bytes that a forward pass keeps, and its model, with gradients, and sizes."""
    module, about = llama(cell, layers)
    (batch,) = batches.micro_batches(
        data, np.arange(len(data)), objective=objective_of(cell), execution=cell.execution
    )
    module.train()
    count = Count(module)
    amp = torch.autocast("cpu", torch.bfloat16, enabled=cell.train.precision == "bf16")
    wrapped = TokenLossModel(module)
    inputs = blocks_inputs(module, count) if checkpointed else nullcontext()
    hooks = saved_tensors_hooks(count.keep, lambda x: x)
    with by_segments(module), checkpointing(module, checkpointed):
        with inputs, amp, hooks:
            loss = wrapped(weigh(batch, objective_of(cell))).total
        kept = count.total
        loss.backward()
    return kept, SimpleNamespace(module=module, files=about)


def counted(cell: Cell, data: Any, *, layers: int = 3) -> dict[str, float]:
    """The bytes of a training step by what takes them, and under `files` the model's sizes."""
    on = cell.execution.gradient_checkpointing
    kept, run = saved(cell, data, layers, checkpointed=on)
    if on:  # in the backward pass one block is there in full
        kept += saved(cell, data, 2)[0] - saved(cell, data, 1)[0]
        kept += _cached(run.module) if cell.train.precision == "bf16" else 0
    parameters = sum(p.numel() * p.element_size() for p in run.module.parameters())
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in optim.trainable(run.module))
    optimizer = optim.optimizer(run.module, cell.train, maker(cell.optimizer))
    optimizer.step()
    masters = sum(m.numel() * 4 for _, m, _ in getattr(optimizer, "pairs", ()))
    state = sum(_bytes(value) for own in optimizer.state.values() for value in own.values())
    return {"weights": parameters, "gradients": gradients, "masters": masters, "moments": state,
            "forward": kept, "files": run.files}  # fmt: skip


def _cached(module: nn.Module) -> int:
    """The 16-bit copies of trained fp32 matrices that autocast keeps to the forward pass's end."""
    layers = [m.weight for m in module.modules() if isinstance(m, nn.Linear)]
    return sum(2 * w.numel() for w in layers if w.requires_grad and w.dtype == torch.float32)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple):
        return sum(map(_bytes, value))
    return sum(map(_bytes, vars(value).values())) if hasattr(value, "__dict__") else 0


def planned(cell: Cell, data: Any, about: Any) -> dict[str, float]:
    """What a plan says of the same."""
    named: Any = SimpleNamespace(
        cell=cell, identity=SimpleNamespace(files=about, data=data.summary)
    )
    return gpu_memory.gpu_parts(named)
