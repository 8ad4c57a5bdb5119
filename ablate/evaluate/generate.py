"""Greedy decoding of many prompts at once, rows dropped from the batch as they end.

Equal to transformers' `generate(do_sample=False)` token by token (a test compares them), without
its settings by model (repetition penalties and the like) and without computing rows that have
ended: answers of a trained model are of very different length. Models that this is not known to be
exact for go through transformers.

On a GPU nothing waits for the device but every `LOOK_EVERY` tokens, when it is asked which rows
have ended; see `static`.

Shapes: B rows still running, L length so far, T new tokens, E tokens that end a row, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from ablate.evaluate.passes import TOKENS, batches
from ablate.evaluate.shapes import short_ways
from ablate.evaluate.static import StaticDecoding

COMPACT_BELOW = 0.9  # share of running rows at which the ended ones leave the batch
STATIC_COMPACT_BELOW = 0.6  # the same where it makes a graph be recorded anew
WORDS_EVERY = 8  # steps between two looks for a stop word; what follows one is cut off anyway
LOOK_EVERY = {"cpu": 1, "cuda": 8}  # steps between two looks at which rows have ended


@dataclass(frozen=True, slots=True)
class Ends:
    """What ends an answer: any of the tokens `ids`, or any of `words` in its text."""

    ids: tuple[int, ...]
    words: tuple[str, ...] = ()
    decode: Callable[[Any], list[str]] | None = None  # rows of ids to texts; for `words`

    def tokens(self, device: torch.device) -> Tensor:
        """Return the tokens that end a row (E,)."""
        return torch.tensor(self.ids, dtype=torch.long, device=device)

    def reached(self, new_BT: Tensor) -> Tensor:
        """Return which rows of generated tokens have ended, bool (B,)."""
        done_B = (new_BT[:, -1:] == self.tokens(new_BT.device)).any(1)
        return done_B | self.said(new_BT)

    def said(self, new_BT: Tensor) -> Tensor:
        """Return which rows have one of the words, bool (B,); looked for `WORDS_EVERY` steps."""
        if not (self.words and self.decode and new_BT.shape[1] % WORDS_EVERY == 0):
            return new_BT.new_zeros(len(new_BT), dtype=torch.bool)
        said = [any(word in text for word in self.words) for text in self.decode(new_BT)]
        return torch.tensor(said, device=new_BT.device)

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
    batch_tokens: int = TOKENS,
) -> list[list[int]]:
    """Return the tokens generated after each prompt, without the stop; at most `max_new`.

    Args:
        model: a causal language model.
        prompts: token ids.
        stops: the tokens that end an answer, or all that does.
        max_new: the most tokens of an answer.
        batch_size: prompts a forward pass, at most.
        batch_tokens: tokens that its prompts and answers may have together.
    """
    decode = greedy if short_ways(model) else _by_transformers
    ends = stops if isinstance(stops, Ends) else Ends(tuple(stops))
    found: dict[int, list[int]] = {}
    device = next(model.parameters()).device
    lengths = [len(prompt) + max_new for prompt in prompts]
    for some in batches(lengths, rows=batch_size, tokens=batch_tokens):
        ids_BL, mask_BL = left_padded([prompts[i] for i in some], device)
        new_BT = decode(model, ids_BL, mask_BL, max_new=max_new, ends=ends)
        for i, tokens in zip(some, new_BT.tolist(), strict=True):
            found[i] = ends.before(tokens)
    return [found[i] for i in range(len(prompts))]


@torch.inference_mode()
def greedy(
    model: nn.Module,
    ids_BL: Tensor,
    mask_BL: Tensor,
    *,
    max_new: int,
    ends: Ends,
    pad: int = 0,
    look_every: int | None = None,
) -> Tensor:
    """Return the most likely tokens after left-padded prompts (B, T), `pad` after a row's end.

    Args:
        model: a model that `shapes.short_ways` accepts.
        ids_BL: the prompts.
        mask_BL: 1 where a prompt has a token.
        max_new: the most tokens of an answer.
        ends: what ends an answer.
        pad: stands behind the end of an answer.
        look_every: tokens between two looks at which rows have ended; `LOOK_EVERY` of the device.
    """
    every = look_every or LOOK_EVERY.get(ids_BL.device.type, 1)
    state: _Decoding | StaticDecoding
    if every > 1:
        state, enough = StaticDecoding(model, ids_BL, mask_BL, max_new), STATIC_COMPACT_BELOW
    else:
        state, enough = _Decoding(model, ids_BL, mask_BL), COMPACT_BELOW
    stops_E, size = ends.tokens(ids_BL.device), torch.zeros_like(ids_BL[:, 0])
    new_BT = ids_BL.new_full((len(ids_BL), max_new), pad)
    running = torch.arange(len(ids_BL), device=ids_BL.device)
    done_B = torch.zeros_like(running, dtype=torch.bool)
    for step in range(max_new):
        next_B = state.next()
        new_BT[running, step] = next_B.masked_fill(done_B, pad)
        size[running] += (~done_B).long()
        done_B = done_B | (next_B[:, None] == stops_E).any(1)
        if (step + 1) % WORDS_EVERY == 0 and ends.words:
            done_B = done_B | ends.said(new_BT[running, : step + 1])
        if (step + 1) % every:
            continue
        keep = (~done_B).nonzero()[:, 0]
        if not len(keep):
            break
        if len(keep) < enough * len(done_B):
            state.keep(keep)
            running, done_B = running[keep], done_B[keep]
    return new_BT[:, : int(size.max())]


class _Decoding:
    """The rows that are decoded: what was read of them, and the next token of each."""

    def __init__(self, model: nn.Module, ids_BL: Tensor, mask_BL: Tensor) -> None:
        """Take left-padded prompts."""
        self._model, self._inputs_BL, self._mask_BL = model, ids_BL, mask_BL
        self._positions_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
        self._cache: Any = None

    def next(self) -> Tensor:
        """Return the most likely next token of every row (B,), which is then read too."""
        output = self._model(
            input_ids=self._inputs_BL,
            attention_mask=self._mask_BL,
            position_ids=self._positions_BL,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache, next_B = output.past_key_values, output.logits[:, -1].argmax(-1)
        self._inputs_BL, self._positions_BL = next_B[:, None], self._positions_BL[:, -1:] + 1
        self._mask_BL = nn.functional.pad(self._mask_BL, (0, 1), value=1)
        return cast(Tensor, next_B)

    def keep(self, rows: Tensor) -> None:
        """Go on with the rows of these numbers alone."""
        self._cache.batch_select_indices(rows)
        self._inputs_BL, self._positions_BL = self._inputs_BL[rows], self._positions_BL[rows]
        self._mask_BL = self._mask_BL[rows]


@torch.inference_mode()
def _by_transformers(
    model: nn.Module, ids_BL: Tensor, mask_BL: Tensor, *, max_new: int, ends: Ends, pad: int = 0
) -> Tensor:
    """Return what `greedy` returns, from the model's own `generate`."""
    length = ids_BL.shape[1]

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            return ends.reached(input_ids[:, length:])

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
