"""The regularisers that act during training: what holds a model near its base, or adds noise.

    minkowski          weight * (sum |w - w0|^p)^(1/p)              once a step
    kl                 weight * sum_t u_t KL_t(base || model) / W   with u and W of `training.loss`
    neftune            embedded tokens + U(-1, 1) alpha / sqrt(L d)
    rank_dropout       B diag(mask) A, one mask a matrix and a step
    attention_dropout  the model's own dropout of attention weights

All but the last give the same course of training however a step is split or laid out. What changes
a module acts in training mode alone and is taken away at the end, so a score sees the clean model.

Shapes: B rows, L positions, T tokens without pads, D embedding size, K targets with a weight, V
vocabulary, R rank.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Generator, Tensor, nn
from torch import distributed as fleet
from torch.nn import functional as F

from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.streams import Streams
from ablate.training.hooks import Hooks, Moment, combine
from ablate.training.loss import Weighed, at_targets, predict

Acting = Callable[[Any, Cell, Streams], AbstractContextManager[Hooks]]


@contextmanager
def acting(model: nn.Module, cell: Cell, *, streams: Streams) -> Iterator[Hooks]:
    """Run a block with the cell's regulariser at work on `model`; yields the hooks to train with.

    Args:
        model: the base with its adapter, not yet trained.
        cell: the cell, settled.
        streams: of the noise and of the masks.

    Raises:
        UserError: the model has no place for it.
    """
    with ExitStack() as stack:
        chosen = [
            stack.enter_context(make(model, cell, streams))
            for name, make in ACTING.items()
            if getattr(cell.regulariser, name)
        ]
        yield combine(*chosen)


def _of_base(model: Any) -> dict[str, nn.Parameter]:
    """Return the parameters of the base that train, by name."""
    own: frozenset[str] = getattr(model, "adapter_own", frozenset())
    return {n: p for n, p in model.named_parameters() if p.requires_grad and n not in own}


# --- distance to the base weights


@contextmanager
def _minkowski(model: Any, cell: Cell, streams: Streams) -> Iterator[Hooks]:
    """Yield the distance to the base, as arXiv 2401.13586 compares with; the root is taken."""
    asked = cell.regulariser
    start = {name: p.detach().clone() for name, p in _of_base(model).items()}

    def extra_loss(moment: Moment) -> Tensor | float:
        if not moment.last:
            return 0.0
        return asked.minkowski * distance(model, start, asked.minkowski_p)

    yield Hooks(extra_loss=extra_loss)


def distance(model: nn.Module, start: Mapping[str, Tensor], p: float) -> Tensor:
    """Return (sum |w - w0|^p)^(1/p) over all that training changes in the base's weights, ().

    These are the base's own parameters that train, from their `start`, and the Delta-W of every
    adapted matrix, less what its start took out. At distance zero the gradient is zero. It takes
    the memory of each adapted matrix once more, and of its gradient.
    """
    with torch.autocast(next(model.parameters()).device.type, enabled=False):
        norms = [_norm(change, p) for change in _changes(model, start)]
        return _norm(torch.stack(norms), p)


def _norm(change: Tensor, p: float) -> Tensor:
    """Return (sum |x|^p)^(1/p), by shares of the largest x: a small x^p would be no float32."""
    largest = change.detach().abs().max()
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    return unit * torch.linalg.vector_norm(change / unit, p)


def _changes(model: nn.Module, start: Mapping[str, Tensor]) -> Iterator[Tensor]:
    for name, parameter in model.named_parameters():
        if name in start:
            yield _exact(parameter) - _exact(start[name])
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            yield from _deltas(layer)


def _deltas(layer: Any) -> Iterator[Tensor]:
    """Yield the changes of a layer's matrix, each in the layout that it is stored in."""
    for adapter in layer.active_adapters:
        change = layer.get_delta_weight(adapter)
        change = _exact(change.to_dense() if change.is_sparse else change)
        if hasattr(layer, "taken_P"):
            taken_DK = layer.taken_P @ layer.taken_Q
            change = change - (taken_DK.T if layer.fan_in_fan_out else taken_DK)
        yield change


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# --- distance to the base's predictions


@contextmanager
def _kl(model: Any, cell: Cell, streams: Streams) -> Iterator[Hooks]:
    """Yield KL(base || model) over the whole vocabulary, weighed and divided as the loss is.

    The model's predictions are those that its loss was taken of. The base's cost one more forward
    pass without dropout, noise or gradient: by the adapter disabled, or by a frozen copy where the
    base itself trains.
    """
    base = copy.deepcopy(model).requires_grad_(False) if _of_base(model) else model
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if module.training and torch.is_grad_enabled():
            seen[:] = [output.logits]

    def extra_loss(moment: Moment) -> Tensor:
        work = moment.work
        logits_KV = at_targets(seen.pop(), work)
        with torch.no_grad(), _untuned(base):
            base_KV = predict(base, work)
        # Devices average their gradients; this is a part of a sum over them.
        share = cell.regulariser.kl * _processes() / moment.divisor
        return share * (divergences(base_KV, logits_KV) * work.weights_K).sum()

    handle = model.register_forward_hook(keep)
    try:
        yield Hooks(extra_loss=extra_loss)
    finally:
        handle.remove()


def divergences(base_KV: Tensor, logits_KV: Tensor) -> Tensor:
    """Return KL(base || model) of each row of logits (K,), in nats, in at least 32 bits."""
    logs_KV = F.log_softmax(_exact(logits_KV), dim=-1)
    base_logs_KV = F.log_softmax(_exact(base_KV), dim=-1)
    return F.kl_div(logs_KV, base_logs_KV, reduction="none", log_target=True).sum(-1)


@contextmanager
def _untuned(model: Any) -> Iterator[None]:
    """Run a block with `model` in evaluation mode and without its adapter, as it was after."""
    modes = {module: module.training for module in model.modules()}
    trains = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    try:
        with model.disable_adapter() if hasattr(model, "peft_config") else nullcontext():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        model.requires_grad_(False)  # PEFT enables an adapter with all that could train in it
        for parameter in trains:
            parameter.requires_grad_(True)


def _processes() -> int:
    return fleet.get_world_size() if fleet.is_available() and fleet.is_initialized() else 1


def _process() -> int:
    return fleet.get_rank() if fleet.is_available() and fleet.is_initialized() else 0


# --- noise on the embedded tokens


@contextmanager
def _neftune(model: Any, cell: Cell, streams: Streams) -> Iterator[Hooks]:
    """Yield NEFTune (arXiv 2310.05914, algorithm 1), with each example's own length as L.

    The paper's code takes the length of the padded row, by which the noise of an example would
    depend on the others in its batch.
    """
    embedding = model.get_input_embeddings()
    generator = streams.torch("neftune", _process())
    pending: list[Tensor] = []

    def before_forward(moment: Moment) -> None:
        D = embedding.weight.shape[1]
        pending[:] = [noise(moment.work, D, cell.regulariser.neftune, generator)]

    def add(module: nn.Module, args: Any, output_BLD: Tensor) -> Tensor | None:
        if not (module.training and pending):
            return None
        return output_BLD + pending.pop().to(output_BLD)

    handle = embedding.register_forward_hook(add)
    try:
        yield Hooks(before_forward=before_forward)
    finally:
        handle.remove()


def noise(work: Weighed, D: int, alpha: float, generator: Generator) -> Tensor:
    """Return the noise (B, L, D) of a micro-batch: U(-1, 1) alpha / sqrt(L D), none on pads.

    Examples draw one after the other, so how a step is split or laid out changes nothing.
    """
    lengths_E = torch.tensor(work.lengths)
    noise_TD = torch.empty(int(lengths_E.sum()), D).uniform_(-1, 1, generator=generator)
    noise_TD *= alpha / (lengths_E * D).sqrt().repeat_interleave(lengths_E)[:, None]
    if work.positions_BL is not None:
        return noise_TD[None]
    noise_BLD = torch.zeros(*work.ids_BL.shape, D)
    noise_BLD[torch.arange(noise_BLD.shape[1]) < lengths_E[:, None]] = noise_TD
    return noise_BLD


# --- dropout


@contextmanager
def _rank_dropout(model: Any, cell: Cell, streams: Streams) -> Iterator[Hooks]:
    """Yield DropLoRA (arXiv 2508.17337): B diag(mask) A while training, B A otherwise.

    One mask a matrix and an optimizer step, as the paper has it, and 1 / (1 - p) on what is left,
    as in its code; there the mask is drawn for each token.
    """
    share, generator = cell.regulariser.rank_dropout, streams.torch("rank_dropout")
    outer = [  # what enters B is masked: not every kind calls A as a module while it trains
        module
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer) and hasattr(layer, "lora_B")
        for module in layer.lora_B.values()
    ]
    masks: dict[nn.Module, Tensor] = {}

    def draw(moment: Moment | None = None) -> None:
        masks.update({m: rank_mask(m.weight.shape[1], share, generator) for m in outer})

    def apply(module: nn.Module, args: tuple[Tensor]) -> Tensor | None:
        return args[0] * masks[module].to(args[0]) if module.training else None

    handles = [module.register_forward_pre_hook(apply) for module in outer]
    draw()
    try:
        yield Hooks(after_step=draw)
    finally:
        for handle in handles:
            handle.remove()


def rank_mask(R: int, share: float, generator: Generator) -> Tensor:
    """Return a mask (R,) that drops each entry with probability `share`, of mean 1."""
    return (torch.rand(R, generator=generator) >= share).float() / (1 - share)


@contextmanager
def _attention_dropout(model: Any, cell: Cell, streams: Streams) -> Iterator[Hooks]:
    """Yield nothing to train with, and set the dropout that the model's attention has.

    Raises:
        UserError: it has none, or what it has does nothing.
    """
    share, places = cell.regulariser.attention_dropout, attention_dropouts(model)
    before = [getattr(holder, name) for holder, name in places]
    try:
        for holder, name in places:
            setattr(holder, name, share)
        if not (places and _drops(model, places)):
            raise UserError(
                f"regulariser.attention_dropout={share}: the attention of model={cell.model.name} "
                "has no dropout; with it attention_dropout must be 0"
            )
        yield Hooks()
    finally:
        for (holder, name), value in zip(places, before, strict=True):
            setattr(holder, name, value)


def attention_dropouts(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return where the attention layers of `model` hold their dropout: a module, an attribute."""
    found: list[tuple[nn.Module, str]] = []
    for module in model.modules():
        inside = "Attention" in type(module).__name__  # elsewhere it is of something else
        other = ("attn_dropout_p", "dropout") if inside else ()
        for name in ("attention_dropout", "attn_dropout", *other):
            held = getattr(module, name, None)
            if isinstance(held, nn.Dropout):
                found.append((held, "p"))
            elif isinstance(held, float | int):
                found.append((module, name))
    return found


@torch.no_grad()
def _drops(model: Any, places: list[tuple[nn.Module, str]]) -> bool:
    """Return whether outputs depend on the dropout at `places`, all else in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    ids = torch.arange(1, 9, device=device)[None]  # a share of 1 / (1 - p) changes the kept ones
    model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        plain = model(input_ids=ids, use_cache=False).logits
        for module in _around(model, places):
            module.training = True
        dropped = model(input_ids=ids, use_cache=False).logits
    for module, mode in modes.items():
        module.training = mode
    return not torch.equal(plain, dropped)


def _around(model: nn.Module, places: list[tuple[nn.Module, str]]) -> Iterator[nn.Module]:
    """Yield the modules that hold a dropout, and those that these are parts of."""
    holders = {holder for holder, _ in places}
    for module in model.modules():
        if module in holders or holders & set(module.children()):
            yield module


# By the regulariser's setting; the frozen copy for `kl` is taken before any module is changed.
ACTING: Mapping[str, Acting] = {
    "kl": _kl,
    "minkowski": _minkowski,
    "neftune": _neftune,
    "rank_dropout": _rank_dropout,
    "attention_dropout": _attention_dropout,
}
