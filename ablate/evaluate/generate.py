"""Greedy decoding of many prompts at once, rows dropped from the batch as they end.

Equal to transformers' `generate(do_sample=False)` token by token (a test compares them), without
its settings by model (repetition penalties and the like) and without computing rows that have
ended: answers of a trained model are of very different length. Models that this is not known to be
exact for go through transformers.

Shapes: B rows still running, L length so far, T new tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from ablate.evaluate.shapes import short_ways

# From the tokens generated so far (B, T) to which rows have ended (B,).
Ended = Callable[[Tensor], Tensor]
COMPACT_BELOW = 0.9  # share of running rows at which the ended ones leave the batch
WORDS_EVERY = 8  # steps between two looks for a stop word; what follows one is cut off anyway


@dataclass(frozen=True, slots=True)
class Ends:
    """What ends an answer: any of the tokens `ids`, or any of `words` in its text."""

    ids: tuple[int, ...]
    words: tuple[str, ...] = ()
    decode: Callable[[Any], list[str]] | None = None  # rows of ids to texts; for `words`

    def reached(self, new_BT: Tensor) -> Tensor:
        """Return which rows of generated tokens have ended, bool (B,)."""
        done_B = torch.isin(new_BT[:, -1], torch.tensor(self.ids, device=new_BT.device))
        if self.words and self.decode and new_BT.shape[1] % WORDS_EVERY == 0:
            said = [any(word in text for word in self.words) for text in self.decode(new_BT)]
            done_B = done_B | torch.tensor(said, device=done_B.device)
        return done_B

    def before(self, tokens: list[int]) -> list[int]:
        """Return the tokens of an answer before what ended it."""
        size = next((i for i, token in enumerate(tokens) if token in self.ids), len(tokens))
        if self.words and self.decode:
            texts = self.decode([tokens[:end] for end in range(size + 1)])
            said = [any(word in text for word in self.words) for text in texts]
            whole = next((texts[end] for end in range(size + 1) if said[end]), None)
            if whole is not None:
                start = min(whole.index(word) for word in self.words if word in whole)
                size = max(end for end in range(size + 1) if len(texts[end]) <= start)
        return tokens[:size]


def answers(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    stops: Sequence[int] | Ends,
    max_new: int,
    batch_size: int,
) -> list[list[int]]:
    """Return the tokens generated after each prompt, without the stop; at most `max_new`.

    Args:
        model: a causal language model.
        prompts: token ids.
        stops: the tokens that end an answer, or all that does.
        max_new: the most tokens of an answer.
        batch_size: prompts a forward pass.
    """
    decode = greedy if short_ways(model) else _by_transformers
    ends = stops if isinstance(stops, Ends) else Ends(tuple(stops))
    found: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    device = next(model.parameters()).device
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        ids_BL, mask_BL = left_padded([prompts[i] for i in some], device)
        new_BT = decode(model, ids_BL, mask_BL, max_new=max_new, ended=ends.reached)
        for i, tokens in zip(some, new_BT.tolist(), strict=True):
            found[i] = ends.before(tokens)
    return [found[i] for i in range(len(prompts))]


@torch.inference_mode()
def greedy(
    model: nn.Module, ids_BL: Tensor, mask_BL: Tensor, *, max_new: int, ended: Ended, pad: int = 0
) -> Tensor:
    """Return the most likely tokens after left-padded prompts (B, T), `pad` after a row's end."""
    new_BT = ids_BL.new_full((len(ids_BL), max_new), pad)
    running = torch.arange(len(ids_BL), device=ids_BL.device)
    positions_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
    inputs_BL, cache, done = ids_BL, None, torch.zeros_like(running, dtype=torch.bool)
    for step in range(max_new):
        output = model(
            input_ids=inputs_BL,
            attention_mask=mask_BL,
            position_ids=positions_BL,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, next_B = output.past_key_values, output.logits[:, -1].argmax(-1)
        new_BT[running[~done], step] = next_B[~done]
        done = done | ended(new_BT[running, : step + 1])
        if done.all():
            return new_BT[:, : step + 1]
        inputs_BL, positions_BL = next_B[:, None], positions_BL[:, -1:] + 1
        mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(mask_BL), 1)], dim=1)
        keep = (~done).nonzero()[:, 0]
        if len(keep) < COMPACT_BELOW * len(done):
            cache.batch_select_indices(keep)
            inputs_BL, positions_BL, mask_BL = inputs_BL[keep], positions_BL[keep], mask_BL[keep]
            running, done = running[keep], done[keep]
    return new_BT


@torch.inference_mode()
def _by_transformers(
    model: nn.Module, ids_BL: Tensor, mask_BL: Tensor, *, max_new: int, ended: Ended, pad: int = 0
) -> Tensor:
    """Return what `greedy` returns, from the model's own `generate`."""
    length = ids_BL.shape[1]

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            return ended(input_ids[:, length:])

    made: Tensor = cast(Any, model).generate(
        input_ids=ids_BL,
        attention_mask=mask_BL,
        max_new_tokens=max_new,
        do_sample=False,
        pad_token_id=pad,
        stopping_criteria=StoppingCriteriaList([Stop()]),
    )
    return made[:, length:]


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B, L) of prompts that all end at the last position."""
    length = max(map(len, prompts))
    ids = [[0] * (length - len(p)) + [int(i) for i in p] for p in prompts]
    mask = [[0] * (length - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
