"""An adapter level applied to a model: what trains, how it starts, and its weights on disk."""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ablate.adapters import table
from ablate.adapters.mora import MoraConfig
from ablate.config import Cell
from ablate.errors import UserError
from ablate.streams import Streams

WEIGHTS = "weights.safetensors"
Options = Mapping[str, Any]


def apply(model: PreTrainedModel, cell: Cell, *, streams: Streams) -> nn.Module:
    """Return `model` changed in place by the cell's adapter, ready to train, equal to the base.

    Exactly the parameters that train require a gradient. Embedding and head are a factor of their
    own: `embeddings=frozen` holds them fixed under full tuning too, `trained` trains them beside
    an adapter. Torch's global random state is left as it was.

    Raises:
        UserError: the adapter cannot be built on this model.
    """
    module = _build(model, cell)
    if cell.adapter.kind in _STARTS:
        _STARTS[cell.adapter.kind](module, streams)
    return module


def _build(model: PreTrainedModel, cell: Cell) -> nn.Module:
    """Return the adapted model before its random start."""
    shapes = linear_shapes(model)
    table.check(cell.adapter, cell.rank, shapes)
    method = table.KINDS[cell.adapter.kind]
    ends = end_parameters(model)
    model.requires_grad_(method.trains_base)
    module: nn.Module = model
    if method.adapts:
        options = table.settings(cell.adapter)
        targets = table.targets(cell.adapter, shapes)
        config = _CONFIGS[cell.adapter.kind](cell.rank, targets, options)
        if isinstance(config, LoraConfig):
            config.fan_in_fan_out = any(isinstance(m, Conv1D) for m in model.modules())
        module = _wrapped(model, config)
    for parameter in ends:
        trains = method.adapts or method.trains_base
        parameter.requires_grad_(trains and cell.embeddings == "trained")
    return module


def _wrapped(model: PreTrainedModel, config: PeftConfig) -> nn.Module:
    """Return the PEFT model in the mode of `model`, torch's global generator untouched."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 under a name that is on its way out.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        module: nn.Module = get_peft_model(model, config)
    return module.train(model.training)


def linear_shapes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of every linear layer by module name, the head left out."""
    head = model.get_output_embeddings()
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            rows, columns = module.weight.shape
            found[name] = (columns, rows) if isinstance(module, Conv1D) else (rows, columns)
    return found


def end_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the parameters of the token embedding and of the head, a tied matrix once.

    Learnt positions (GPT-2) are part of the body: full tuning trains them, an adapter does not.
    """
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    found = {id(p): p for m in modules if m is not None for p in m.parameters()}
    return list(found.values())


# --- configurations and starts, by kind


def _lora_config(rank: int, targets: table.Shapes, options: Options) -> PeftConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=table.lora_alpha(rank, options),
        lora_dropout=options["dropout"],
        use_rslora=options["rslora"],
        use_dora=options["dora"],
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )


@torch.no_grad()
def _lora_start(module: nn.Module, streams: Streams) -> None:
    """Draw A from U(-1/sqrt(k), 1/sqrt(k)), PEFT's law, and leave B at zero.

    Row by row, so that a seed's A at rank 4 is the first four rows of its A at rank 16, and from
    one stream per module, so that the choice of targets does not move the draws.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        generator = streams.torch("init", "lora", re.sub(r"^base_model\.model\.", "", name))
        A_rK = layer.lora_A["default"].weight
        bound = A_rK.shape[1] ** -0.5
        for row_K in A_rK:
            draw_K = torch.empty(len(row_K)).uniform_(-bound, bound, generator=generator)
            row_K.copy_(draw_K)


def _mora_config(rank: int, targets: table.Shapes, options: Options) -> PeftConfig:
    return MoraConfig(
        r=rank,
        mora_type=table.mora_type(rank, targets, options),
        mora_dropout=options["dropout"],
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )


_CONFIGS: dict[str, Callable[[int, table.Shapes, Options], PeftConfig]] = {
    "lora": _lora_config,
    "mora": _mora_config,
}
_STARTS: dict[str, Callable[[nn.Module, Streams], None]] = {"lora": _lora_start}


# --- on disk


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def save(module: nn.Module, folder: Path) -> None:
    """Write the trained weights of an applied model, and nothing of its base, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().cpu().contiguous() for name, p in trained(module).items()}
    save_file(weights, folder / WEIGHTS)


@torch.no_grad()
def load(model: PreTrainedModel, folder: Path, cell: Cell) -> nn.Module:
    """Return the base `model` with the cell's adapter and the weights that `save` wrote.

    Raises:
        UserError: there are no weights, or they are another cell's.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: no trained weights here")
    module = _build(model, cell)
    stored, wanted = load_file(path), trained(module)
    shapes = {name: p.shape for name, p in wanted.items()}
    if {name: w.shape for name, w in stored.items()} != shapes:
        raise UserError(
            f"{path}: these weights are not of adapter={cell.adapter.name} rank={cell.rank} "
            f"embeddings={cell.embeddings} on this model"
        )
    for name, parameter in wanted.items():
        parameter.copy_(stored[name])
    return module
