"""Dropout over the rank of LoRA's factors (DropLoRA) and over attention weights.

Letters: R rank.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Generator, Tensor, nn

from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.streams import Streams
from ablate.training.hooks import Hooks, Memory, StepContext


@contextmanager
def rank_dropout(model: Any, cell: Cell, streams: Streams) -> Iterator[Hooks]:
    """Yield hooks of DropLoRA (arXiv 2508.17337): B diag(mask) A while training, B A otherwise.

    One mask per matrix and optimizer step, as in the paper, scaled by 1 / (1 - p), as in its code,
    which draws a mask for each token.

    Args:
        model: the base with an adapter that has LoRA's factors (`Method.has_factors`).
        cell: the cell; `rank_dropout` (p) of its regulariser is read.
        streams: the masks draw from the stream "rank_dropout".
    """
    share, generator = cell.regulariser.rank_dropout, streams.torch("rank_dropout")
    outer = [  # the input of B is masked: not every method calls A as a module in training
        module
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer) and hasattr(layer, "lora_B")
        for module in layer.lora_B.values()
    ]
    masks: dict[nn.Module, Tensor] = {}

    def draw(context: StepContext | None = None) -> None:
        drawn = [rank_mask(module.weight.shape[1], share, generator) for module in outer]
        on_device = torch.cat(drawn).to(
            outer[0].weight.device, non_blocking=True
        )  # one copy a step
        masks.update(zip(outer, on_device.split([len(mask) for mask in drawn]), strict=True))

    def apply(module: nn.Module, args: tuple[Tensor]) -> Tensor | None:
        return args[0] * masks[module].to(args[0].dtype) if module.training else None

    def read(model: nn.Module) -> dict[str, Any]:
        return {"generator": generator.get_state(), "masks": [masks[module] for module in outer]}

    def write(model: nn.Module, held: dict[str, Any]) -> None:
        generator.set_state(held["generator"])
        masks.update(zip(outer, held["masks"], strict=True))

    handles = [module.register_forward_pre_hook(apply) for module in outer]
    draw()
    try:
        yield Hooks(after_step=draw, memories=(Memory(read, write),))
    finally:
        for handle in handles:
            handle.remove()


def rank_mask(R: int, share: float, generator: Generator) -> Tensor:
    """Return a mask (R,): 0 with probability `share`, else 1 / (1 - share), of mean 1."""
    return (torch.rand(R, generator=generator) >= share).float() / (1 - share)


@contextmanager
def attention_dropout(model: Any, cell: Cell, streams: Streams) -> Iterator[Hooks]:
    """Yield no hooks; the model's own dropout of attention weights is set for the block.

    Args:
        model: the base with its adapter.
        cell: the cell; `attention_dropout` of its regulariser is read.
        streams: not used; dropout draws from torch's global state, which the loop sets.

    Raises:
        UserError: the model has no such dropout, or its setting has no effect.
    """
    share, places = cell.regulariser.attention_dropout, dropout_settings(model)
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


def dropout_settings(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return where the attention layers of `model` store their dropout: module and attribute."""
    found: list[tuple[nn.Module, str]] = []
    for module in model.modules():
        inside = (
            "Attention" in type(module).__name__
        )  # elsewhere these names belong to other dropouts
        other = ("attn_dropout_p", "dropout") if inside else ()
        for name in ("attention_dropout", "attn_dropout", *other):
            held = getattr(module, name, None)
            if isinstance(held, nn.Dropout):
                found.append((held, "p"))
            elif isinstance(held, float | int):
                found.append((module, name))
    return found


def drops_attention(model: nn.Module) -> bool:
    """Return whether attention weights are dropped in training."""
    return any(getattr(holder, name) > 0 for holder, name in dropout_settings(model))


def draws(model: nn.Module) -> bool:
    """Return whether anything is dropped in training: random numbers are drawn then."""
    layers = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
    return layers or drops_attention(model)


@torch.no_grad()
def _drops(model: Any, places: list[tuple[nn.Module, str]]) -> bool:
    """Return whether outputs depend on the dropout at `places`, all else in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    ids = torch.arange(1, 9, device=device)[
        None
    ]  # kept entries are scaled too, so any drawn mask changes outputs
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
    """Yield the modules that store a dropout, and the parents of those."""
    holders = {holder for holder, _ in places}
    for module in model.modules():
        if module in holders or holders & set(module.children()):
            yield module
