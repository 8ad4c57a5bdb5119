"""An adapter level applied to a model: what trains, how it starts, and its weights on disk."""

import importlib
import itertools
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ablate.adapters import base_residual, compatibility, init, registry
from ablate.adapters.calibration import Calibration
from ablate.adapters.init import Ground, Start
from ablate.adapters.method import Shapes
from ablate.config.schema import Cell
from ablate.data.tokenise import Tokenised
from ablate.errors import UserError
from ablate.streams import Streams

WEIGHTS = "weights.safetensors"
LEARNT = "learnt"  # in that file: what the adapter's configuration was told of the data

Learnt = Mapping[str, Any]


def apply(
    model: PreTrainedModel, cell: Cell, *, streams: Streams, data: Tokenised | None = None
) -> nn.Module:
    """Return `model` changed in place by the cell's adapter, ready to train.

    Exactly the parameters that train require a gradient. Embedding and head are a factor of their
    own: `embeddings=frozen` holds them fixed under full tuning too, `trained` trains them beside
    an adapter. Torch's global random state is left as it was.

    Args:
        model: the base, on the device where it will train.
        cell: the cell.
        streams: the cell's streams.
        data: the rows that the cell trains on, for starts that look at them.

    Raises:
        UserError: the adapter cannot be built on this model, or needs data that are not there.
    """
    ground = _ground(model, cell, streams, data)
    originals = _originals(model, cell)
    learnt = init.learnt(cell.adapter.kind, ground.calibration)
    module = _built(model, cell, ground, start=init.start_of(cell), learnt=learnt)
    if originals:
        dropped = registry.method(cell.adapter).changes_base
        base_residual.measure(module, originals) if dropped else base_residual.note(module)
        base_residual.take(module, originals)
    return module


def _ground(model: PreTrainedModel, cell: Cell, streams: Streams, data: Tokenised | None) -> Ground:
    calibration = Calibration(model, data, cell, streams=streams)
    options = compatibility.init_of(cell)[1]
    return Ground(streams=streams, calibration=calibration, options=options)


def _built(
    model: PreTrainedModel, cell: Cell, ground: Ground, *, start: Start, learnt: Learnt
) -> nn.Module:
    """Return `model` with the cell's adapter on it, begun by `start`."""
    shapes = linear_shapes(model)
    registry.check(cell, shapes)
    method = registry.method(cell.adapter)
    ends, known = end_parameters(model), {id(tensor) for _, tensor in _tensors(model)}
    model.requires_grad_(method.trains_base)
    module: nn.Module = model
    if method.adapts:
        told = {**start.settings(ground.options), **learnt}
        config = configuration(cell, registry.adapted(cell, shapes), **told)
        _complete(config, model, cell, ground.streams)
        start.before(model, config, ground)
        quiet = [message for message in (method.quiet, start.quiet) if message]
        module = _wrapped(model, config, quiet=quiet, streams=ground.streams)
        start.after(module, ground)
    if _changes_base(cell):
        base_residual.room(module)
    _choose_trained(module, cell, ends)
    own = frozenset(name for name, tensor in _tensors(module) if id(tensor) not in known)
    module.adapter_own, module.adapter_learnt = own, dict(learnt)  # type: ignore[assignment]
    return module


def configuration(cell: Cell, targets: Shapes, **told: Any) -> PeftConfig:
    """Return the PEFT configuration of the cell's adapter on these matrices, and what it is told.

    What depends on more of the model than its matrices is still missing.
    """
    method = registry.method(cell.adapter)
    home, _, name = method.config.rpartition(":")
    made = getattr(importlib.import_module(home or "peft"), name)
    arguments = method.arguments_at(cell.rank, targets, registry.settings(cell.adapter))
    if method.placed:
        arguments["target_modules"] = list(targets)
    config: PeftConfig = made(**{**arguments, **told}, task_type="CAUSAL_LM")
    return config


def _complete(config: PeftConfig, model: PreTrainedModel, cell: Cell, streams: Streams) -> None:
    method = registry.method(cell.adapter)
    if method.trains_norms:
        config.target_modules = set(norms(model))
    if method.seed:
        setattr(config, method.seed, streams.seed("init", "frozen", cell.adapter.kind))
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = any(isinstance(m, Conv1D) for m in model.modules())


def _wrapped(
    model: PreTrainedModel, config: PeftConfig, *, quiet: Iterable[str], streams: Streams
) -> nn.Module:
    """Return the PEFT model in the mode of `model`; what it draws comes from a stream."""
    drawn = streams.global_torch("init", "peft", device=next(model.parameters()).device)
    with drawn, warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 under a name that is on its way out.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        for message in quiet:
            warnings.filterwarnings("ignore", message=message)
        module: nn.Module = get_peft_model(model, config)
    return module.train(model.training)


def _choose_trained(module: nn.Module, cell: Cell, ends: list[nn.Parameter]) -> None:
    """Leave a gradient to what trains: embeddings by their factor, no part that is held fixed."""
    method = registry.method(cell.adapter)
    for parameter in ends:
        trains = method.adapts or method.trains_base
        parameter.requires_grad_(trains and cell.embeddings == "trained")
    freezes = compatibility.optimizer_of(cell.optimizer)[0].freezes
    for name, parameter in module.named_parameters():
        if any(f".{part}." in name for part in freezes):
            parameter.requires_grad_(False)


def _changes_base(cell: Cell) -> bool:
    return registry.method(cell.adapter).changes_base or compatibility.init_of(cell)[0].changes_base


def _originals(model: PreTrainedModel, cell: Cell) -> dict[str, Tensor]:
    """Return copies of the weights that the method or its start changes, by module name."""
    if not _changes_base(cell):
        return {}
    return base_residual.copies(model, registry.adapted(cell, linear_shapes(model)))


# --- what a model has


def linear_shapes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of every linear layer by module name, the head left out."""
    head = model.get_output_embeddings()
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            found[name] = (module.weight.shape[1], module.weight.shape[0])
        elif isinstance(module, nn.Linear) and module is not head:  # packed if it is quantised
            found[name] = (module.out_features, module.in_features)
    return found


def norms(model: PreTrainedModel) -> list[str]:
    """Return the names of the normalisation layers: the modules whose weight is a vector."""
    weights = ((n, getattr(m, "weight", None)) for n, m in model.named_modules())
    return [name for name, w in weights if isinstance(w, nn.Parameter) and w.ndim == 1]


def end_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the parameters of the token embedding and of the head, a tied matrix once.

    Learnt positions (GPT-2) are part of the body: full tuning trains them, an adapter does not.
    """
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    found = {id(p): p for m in modules if m is not None for p in m.parameters()}
    return list(found.values())


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(module.named_parameters(), module.named_buffers())


# --- on disk


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def kept(module: nn.Module) -> dict[str, Tensor]:
    """Return what `save` writes of an applied model, by name.

    That is all that trains and all else that came with the adapter: fixed factors, what restarts
    have added up, what a start has taken out of the base. Of the base itself there is nothing.
    """
    own: frozenset[str] = getattr(module, "adapter_own", frozenset())
    return {n: t.detach() for n, t in _tensors(module) if n in own or t.requires_grad}


def save(module: nn.Module, folder: Path) -> None:
    """Write an applied model without its base into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.cpu().clone().contiguous() for name, tensor in kept(module).items()}
    learnt = json.dumps(getattr(module, "adapter_learnt", {}))
    save_file(weights, folder / WEIGHTS, metadata={LEARNT: learnt})


@torch.no_grad()
def load(model: PreTrainedModel, folder: Path, cell: Cell, *, streams: Streams) -> nn.Module:
    """Return the base `model` with the cell's adapter and the weights that `save` wrote.

    Nothing is drawn, decomposed or measured anew, so the result is what was saved on any machine.

    Raises:
        UserError: there are no weights, or they are another cell's.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: no trained weights here")
    originals = _originals(model, cell)
    ground = _ground(model, cell, streams, None)
    module = _built(model, cell, ground, start=Start(), learnt=_learnt(path))
    stored, wanted = load_file(path), kept(module)
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    if {name: tensor.shape for name, tensor in stored.items()} != shapes:
        raise UserError(
            f"{path}: these weights are not of adapter={cell.adapter.name} rank={cell.rank} "
            f"embeddings={cell.embeddings} on this model"
        )
    for name, tensor in wanted.items():
        tensor.copy_(stored[name])
    if originals:
        base_residual.take(module, originals)
    module.load_state_dict({}, strict=False)  # layers that follow what is loaded are told
    return module


def _learnt(path: Path) -> Learnt:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    learnt: Learnt = json.loads(metadata.get(LEARNT, "{}"))
    return learnt
