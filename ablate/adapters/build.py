"""Applies an adapter level to a model."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ablate.adapters import registry
from ablate.adapters.init import base_residual, kept
from ablate.adapters.init.calibration import Calibration
from ablate.adapters.init.context import InitContext, InitSteps
from ablate.adapters.init.spec import init_of
from ablate.adapters.lora.forward import lighten
from ablate.adapters.method import Method, Shapes, load_attribute
from ablate.adapters.optimizers import optimizer_of
from ablate.adapters.start import changes_base
from ablate.config.schema import Cell
from ablate.data.tokenise import Tokenised
from ablate.streams import Streams


def apply(
    model: PreTrainedModel,
    cell: Cell,
    *,
    streams: Streams,
    data: Tokenised | None = None,
    content_hash: str = "",
) -> nn.Module:
    """Return `model` changed in place by the cell's adapter, ready to train.

    Exactly the parameters that train require a gradient. Embedding and head are a separate factor:
    `embeddings=frozen` keeps them fixed also in full fine-tuning, `trained` trains them together
    with an adapter. Torch's global random state is restored.

    Args:
        model: the base, on the device where it will train.
        cell: the cell.
        streams: the cell's streams.
        data: the rows that the cell trains on, for starts that need them.
        content_hash: of the base; with it long decompositions are kept between cells.

    Raises:
        UserError: the adapter cannot be built on this model, or needs data that are not there.
    """
    context = _context(model, cell, streams, data)
    before = originals(model, cell)
    file = kept.start_file(
        cell, linear_shapes(model), content_hash=content_hash, device=model.device
    )
    if file and file.exists():
        module = _built(model, cell, context, steps=InitSteps(), from_data={})
        kept.restore(module, file)
        base_residual.subtract(module, before)
        return module
    row = registry.method(cell.adapter)
    from_data = (
        load_attribute(row.config_from_data)(context.calibration) if row.config_from_data else {}
    )
    module = _built(model, cell, context, steps=init_steps(cell), from_data=from_data)
    if before:
        if row.changes_base:
            base_residual.store_from_weights(module, before)
        else:
            base_residual.store_from_factors(module)
        base_residual.subtract(module, before)
    if file:
        kept.store(module, file)
    return module


def unstarted(model: PreTrainedModel, cell: Cell, *, streams: Streams) -> nn.Module:
    """Return `model` with the cell's adapter on it, before any start: for loaded weights."""
    context = _context(model, cell, streams, None)
    return _built(model, cell, context, steps=InitSteps(), from_data={})


def init_steps(cell: Cell) -> InitSteps:
    """Return the steps of the cell's init; under `default`, the method's own start or PEFT's."""
    init, _ = init_of(cell)
    if init.steps:
        steps: InitSteps = load_attribute(init.steps)
        return steps
    start = registry.method(cell.adapter).start
    return InitSteps(after=load_attribute(start)) if start else InitSteps()


def _context(
    model: PreTrainedModel, cell: Cell, streams: Streams, data: Tokenised | None
) -> InitContext:
    calibration = Calibration(model, data, cell, streams=streams)
    return InitContext(streams=streams, calibration=calibration, options=init_of(cell)[1])


def _built(
    model: PreTrainedModel,
    cell: Cell,
    context: InitContext,
    *,
    steps: InitSteps,
    from_data: Mapping[str, Any],
) -> nn.Module:
    """Return `model` with the cell's adapter on it, initialised by `steps`."""
    shapes = linear_shapes(model)
    registry.check(cell, shapes)
    method = registry.method(cell.adapter)
    ends, known = end_parameters(model), {id(tensor) for _, tensor in _tensors(model)}
    model.requires_grad_(method.trains_base)
    module: nn.Module = model
    if method.adapts:
        arguments = {**steps.settings(context.options), **from_data}
        config = configuration(cell, registry.adapted(cell, shapes), **arguments)
        _complete(config, model, cell, context.streams)
        steps.before(model, config, context)
        with drawing(context.streams, model, quiet=(method.quiet, steps.quiet)):
            module = get_peft_model(model, config)
        module.train(model.training)
        if next(model.parameters()).device.type == "cuda":
            lighten(module)  # on a CPU the gain is 5 %, and records there have PEFT's rounding
        steps.after(module, context)
    if changes_base(cell):
        base_residual.add_buffers(module)
    _choose_trained(module, cell, ends)
    own = frozenset(name for name, tensor in _tensors(module) if id(tensor) not in known)
    attributes = {
        "adapter_own": own,  # names of the tensors that the adapter added
        "adapter_packs": method.packs,
    }
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def config_name(method: Method) -> str:
    """Return the "module:Class" of a method's PEFT configuration."""
    return method.config if ":" in method.config else f"peft:{method.config}"


def configuration(cell: Cell, targets: Shapes, **further: Any) -> PeftConfig:
    """Return the PEFT configuration of the cell's adapter on the matrices `targets`.

    `further` are arguments of the init and of the data. Settings that depend on more of the model
    than its matrices are set by `_complete`.
    """
    method = registry.method(cell.adapter)
    arguments = method.arguments_at(cell.rank, targets, registry.settings(cell.adapter))
    if method.placed:
        arguments["target_modules"] = list(targets)
    make = load_attribute(config_name(method))
    config: PeftConfig = make(**{**arguments, **further}, task_type="CAUSAL_LM")
    return config


def _complete(config: PeftConfig, model: PreTrainedModel, cell: Cell, streams: Streams) -> None:
    """Set what depends on the model's layers or on the cell's streams."""
    method = registry.method(cell.adapter)
    if method.trains_norms:
        config.target_modules = set(norms(model))
    if method.seed:
        setattr(config, method.seed, streams.seed("init", "frozen", cell.adapter.kind))
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = any(isinstance(m, Conv1D) for m in model.modules())


@contextmanager
def drawing(streams: Streams, model: PreTrainedModel, *, quiet: Iterable[str]) -> Iterator[None]:
    """Run a block in which PEFT draws from a stream, without warnings that begin with `quiet`."""
    drawn = streams.global_torch("init", "peft", device=next(model.parameters()).device)
    with drawn, warnings.catch_warnings():
        # PEFT 0.21 uses an attribute that transformers 5.23 has deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        for message in filter(None, quiet):
            warnings.filterwarnings("ignore", message=message)
        yield


def _choose_trained(module: nn.Module, cell: Cell, ends: list[nn.Parameter]) -> None:
    """Set which parameters train: embeddings by their factor, none that the optimizer freezes."""
    method = registry.method(cell.adapter)
    for parameter in ends:
        trains = method.adapts or method.trains_base
        parameter.requires_grad_(trains and cell.embeddings == "trained")
    freezes = optimizer_of(cell.optimizer)[0].freezes
    for name, parameter in module.named_parameters():
        if any(f".{part}." in name for part in freezes):
            parameter.requires_grad_(False)


def originals(model: PreTrainedModel, cell: Cell) -> dict[str, Tensor]:
    """Return copies of the weights that the method or its start changes, by module name."""
    if not changes_base(cell):
        return {}
    return base_residual.copies(model, registry.adapted(cell, linear_shapes(model)))


# --- the parts of a model


def linear_shapes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of every linear layer by module name, without the head."""
    head = model.get_output_embeddings()
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            found[name] = (module.weight.shape[1], module.weight.shape[0])
        elif (
            isinstance(module, nn.Linear) and module is not head
        ):  # a quantised weight is packed, so its own shape is not used
            found[name] = (module.out_features, module.in_features)
    return found


def norms(model: PreTrainedModel) -> list[str]:
    """Return the names of the normalisation layers: the modules whose weight is a vector."""
    weights = ((n, getattr(m, "weight", None)) for n, m in model.named_modules())
    return [name for name, w in weights if isinstance(w, nn.Parameter) and w.ndim == 1]


def end_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the parameters of the token embedding and of the head, a tied matrix once.

    Position embeddings (GPT-2) are not among them: full fine-tuning trains them.
    """
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    found = {id(p): p for m in modules if m is not None for p in m.parameters()}
    return list(found.values())


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(module.named_parameters(), module.named_buffers())


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
