"""Trained weights on disk, in the formats that other programs read.

An adapter is written as PEFT writes it, a model whose own weights trained as a folder of
transformers. Where a start moved a component P Q of the base's weight into the adapter
(`init.base_residual`), PEFT's own file would be loaded onto the whole base and be wrong. Such an
adapter is written as a plain LoRA of rank r + R on the untouched base, where s is LoRA's scale:

    W = (W0 - P Q) + s B A = W0 + s [B, -P / s] [A; Q]

Letters: D outputs, K inputs, r rank, R rank of P Q.
"""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ablate.adapters import build, registry
from ablate.adapters.init import base_residual
from ablate.adapters.init.base_residual import ADAPTER
from ablate.adapters.method import load_attribute
from ablate.adapters.start import changes_base
from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.models.initial import quiet
from ablate.streams import Streams

Tensors = dict[str, Tensor]


def save(module: nn.Module, folder: Path, *, base: str = "") -> None:
    """Write the adapter and the embeddings that trained with it, or the whole model, to `folder`.

    Args:
        module: a trained model.
        folder: is made where there is none.
        base: where PEFT finds the base model: its hub id or its folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(module, PeftModel):
        with quiet():
            module.save_pretrained(folder)  # type: ignore[operator]
        return
    config = _configuration(module)
    config.inference_mode, config.base_model_name_or_path = True, base
    config.save_pretrained(folder)
    save_file(tensors(module), folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def kept(folder: Path) -> bool:
    """Return whether `folder` holds weights that `save` wrote."""
    return any((folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, "config.json"))


def load(model: PreTrainedModel, folder: Path, cell: Cell, *, streams: Streams) -> nn.Module:
    """Return the base `model` with the weights that `save` wrote for `cell`.

    No start is computed again: the result is what was saved, on any machine.

    Raises:
        UserError: there are no weights.
    """
    if not kept(folder):
        raise UserError(f"{folder}: no trained weights here")
    method = registry.method(cell.adapter)
    if not method.adapts:
        stored = {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
        model.load_state_dict(stored, strict=False)  # a tied head is stored once
        return model
    if changes_base(cell):
        return _load_moved(model, folder, cell, streams)
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():  # PEFT would take a pickle instead
        raise UserError(f"{folder}: no {SAFETENSORS_WEIGHTS_NAME} here")
    load_attribute(build.config_name(method))  # the module of a type of this project registers it
    with build.drawing(streams, model, quiet=[method.quiet]):
        module: PeftModel = PeftModel.from_pretrained(
            model, str(folder), torch_device=str(model.device)
        )
    module.adapter_packs = method.packs
    return module


def tensors(module: PeftModel) -> Tensors:
    """Return the tensors that `save` writes for an adapter, under PEFT's names."""
    ends = build.end_parameters(module.get_base_model())
    with warnings.catch_warnings():  # says that embeddings are saved, as they are asked to be
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
        # Rank 0 of a matrix, which AdaLoRA's schedule may leave, is no shard of a larger one.
        warnings.filterwarnings("ignore", message=".* have invalid shape")
        found: Tensors = get_peft_model_state_dict(
            module, save_embedding_layers=any(end.requires_grad for end in ends)
        )
    for name, layer in base_residual.named(module) if _moved(module) else ():
        prefix, scale = f"base_model.model.{name}", layer.scaling[ADAPTER]
        diagonal = found.pop(f"{prefix}.lora_diag", torch.ones(()))  # KaSA's, between B and A
        A, B = f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"
        found[A] = torch.cat([found[A], layer.residual_Q])
        found[B] = torch.cat([found[B] * diagonal, -layer.residual_P / scale], dim=1)
    return {name: t.detach().cpu().clone().contiguous() for name, t in found.items()}


def _moved(module: nn.Module) -> bool:
    """Return whether a component of the base's weights was moved into the adapter."""
    return any(hasattr(layer, "residual_P") for layer in module.modules())


def _configuration(module: PeftModel) -> PeftConfig:
    """Return the configuration under which PEFT loads what `tensors` returns."""
    config: Any = copy.deepcopy(module.peft_config[ADAPTER])
    if not _moved(module):
        if getattr(config, "init_lora_weights", None) == "eva":  # has been computed
            config.init_lora_weights, config.eva_config = True, None
        return config
    rank = 2 * config.r
    scale = next(layer.scaling[ADAPTER] for layer in base_residual.layers(module))
    return LoraConfig(
        r=rank,
        lora_alpha=scale * rank,
        lora_dropout=config.lora_dropout,
        use_dora=config.use_dora,
        fan_in_fan_out=config.fan_in_fan_out,
        target_modules=config.target_modules,
        task_type=config.task_type,
    )


@torch.no_grad()
def _load_moved(model: PreTrainedModel, folder: Path, cell: Cell, streams: Streams) -> nn.Module:
    """Return `model` less the stored components, with the stored factors of the adapter on it."""
    stored = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    originals = build.originals(model, cell)
    module = build.unstarted(model, cell, streams=streams)
    for name, layer in base_residual.named(module):
        prefix, rank = f"base_model.model.{name}", layer.r[ADAPTER]
        A, B = f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"
        layer.residual_Q.copy_(stored[A][rank:])
        layer.residual_P.copy_(-stored[B][:, rank:] * layer.scaling[ADAPTER])
        stored[A], stored[B] = stored[A][:rank], stored[B][:, :rank]
        if hasattr(layer, "lora_diag"):
            layer.lora_diag[ADAPTER].fill_(1.0)  # is in B
    set_peft_model_state_dict(module, stored)
    base_residual.subtract(module, originals)
    return module
