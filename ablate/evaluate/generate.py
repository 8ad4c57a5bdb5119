"""Greedy decoding of many prompts at once, rows dropped from the batch as they end.

Equal to transformers' `generate(do_sample=False)` token by token (a test compares them), without
its settings by model (repetition penalties and the like) and without computing rows that have
ended: answers of a trained model are of very different length. Models that this is not known to be
exact for go through transformers.

On a GPU nothing waits for the device but every `LOOK_EVERY` tokens, when it is asked which rows
have ended; see `static`.

Shapes: B rows in the batch, those of lane 0 first, L length so far, M lanes, T new tokens, E tokens
that end a row, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from ablate.evaluate.lanes import beside
from ablate.evaluate.passes import TOKENS, batches
from ablate.evaluate.shapes import cache_name, short_ways
from ablate.evaluate.split import over_processes
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
    in_lanes = functools.partial(greedy, batch_tokens=batch_tokens)
    decode = in_lanes if short_ways(model) else _by_transformers
    ends = stops if isinstance(stops, Ends) else Ends(tuple(stops))
    device = next(model.parameters()).device
    lengths = [len(prompt) + max_new for prompt in prompts]

    def answered(numbers: list[int]) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        sizes = [lengths[n] for n in numbers]
        for some in batches(sizes, rows=batch_size, tokens=batch_tokens):
            ids_BL, mask_BL = left_padded([prompts[numbers[i]] for i in some], device)
            new_BT = decode(model, ids_BL, mask_BL, max_new=max_new, ends=ends)
            for i, tokens in zip(some, new_BT.tolist(), strict=True):
                found[i] = ends.before(tokens)
        return [found[i] for i in range(len(numbers))]

    every = list(batches(lengths, rows=batch_size, tokens=batch_tokens))
    return over_processes(every, answered)


def greedy(
    model: nn.Module,
    ids_BL: Tensor,
    mask_BL: Tensor,
    *,
    max_new: int,
    ends: Ends,
    pad: int = 0,
    look_every: int | None = None,
    batch_tokens: int = TOKENS,
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
        batch_tokens: tokens that prompts and answers of all lanes may have together.
    """
    every = look_every or LOOK_EVERY.get(ids_BL.device.type, 1)
    limits = Limits(max_new, ends, pad, every)
    length = ids_BL.shape[1] + max_new

    def run(model: nn.Module, lanes: int) -> list[Tensor]:
        rows = len(ids_BL) if lanes == 1 else max(1, batch_tokens // (lanes * length))
        parts = zip(ids_BL.split(rows), mask_BL.split(rows), strict=True)
        made = [_decoded(model, *part, limits, lanes=lanes) for part in parts]
        new_MBT, size_MB = (torch.cat(tensors, dim=1) for tensors in zip(*made, strict=True))
        return [
            new_BT[:, : int(size_B.max())] for new_BT, size_B in zip(new_MBT, size_MB, strict=True)
        ]

    prompts = (ids_BL.cpu().numpy().tobytes(), mask_BL.cpu().numpy().tobytes())
    question = ("greedy", *prompts, length, max_new, ends.ids, ends.words, pad, every)
    return beside(model, question, run)


@dataclass(frozen=True, slots=True)
class Limits:
    """How far prompts are gone on with; see `greedy`."""

    max_new: int
    ends: Ends
    pad: int
    every: int


@torch.inference_mode()
def _decoded(
    model: nn.Module, ids_BL: Tensor, mask_BL: Tensor, limits: Limits, *, lanes: int
) -> tuple[Tensor, Tensor]:
    """Return of each of the model's lanes the tokens (M, B, T) and the sizes of answers (M, B).

    All lanes keep as many rows in the batch: of a lane with fewer running ones also ended ones.
    """
    shape, ends, every = (lanes, len(ids_BL), limits.max_new), limits.ends, limits.every
    ids_BL, mask_BL = (ids_BL.repeat(lanes, 1), mask_BL.repeat(lanes, 1))
    state: _Decoding | StaticDecoding
    if every > 1:
        state = StaticDecoding(model, ids_BL, mask_BL, limits.max_new)
        enough = STATIC_COMPACT_BELOW
    else:
        state, enough = _Decoding(model, ids_BL, mask_BL), COMPACT_BELOW
    stops_E, size = ends.tokens(ids_BL.device), torch.zeros_like(ids_BL[:, 0])
    new_BT = ids_BL.new_full((len(ids_BL), limits.max_new), limits.pad)
    running = torch.arange(len(ids_BL), device=ids_BL.device)
    done_B = torch.zeros_like(running, dtype=torch.bool)
    for step in range(limits.max_new):
        next_B = state.next()
        new_BT[running, step] = next_B.masked_fill(done_B, limits.pad)
        size[running] += (~done_B).long()
        done_B = done_B | (next_B[:, None] == stops_E).any(1)
        if (step + 1) % WORDS_EVERY == 0 and ends.words:
            done_B = done_B | ends.said(new_BT[running, : step + 1])
        if (step + 1) % every:
            continue
        keep = _running(done_B, lanes)
        if not len(keep):
            break
        if len(keep) < enough * len(done_B):
            state.keep(keep)
            running, done_B = running[keep], done_B[keep]
    return new_BT.view(shape), size.view(shape[:2])


def _running(done_B: Tensor, lanes: int) -> Tensor:
    """Return the numbers of the rows to go on with: of every lane as many as the most that run."""
    done_MB = done_B.view(lanes, -1)
    most = int((~done_MB).sum(1).max())
    first_MB = done_MB.long().argsort(dim=1, stable=True)[:, :most].sort(dim=1).values
    starts_M1 = torch.arange(lanes, device=done_B.device)[:, None] * done_MB.shape[1]
    return (starts_M1 + first_MB).flatten()


class _Decoding:
    """The rows that are decoded: what was read of them, and the next token of each."""

    def __init__(self, model: nn.Module, ids_BL: Tensor, mask_BL: Tensor) -> None:
        """Take left-padded prompts."""
        self._model, self._inputs_BL, self._mask_BL = model, ids_BL, mask_BL
        self._positions_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
        self._cache: Any = None
        self._cache_name = cache_name(model)

    def next(self) -> Tensor:
        """Return the most likely next token of every row (B,), which is then read too."""
        output = self._model(
            input_ids=self._inputs_BL,
            attention_mask=self._mask_BL,
            position_ids=self._positions_BL,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: self._cache},
        )
        self._cache, next_B = getattr(output, self._cache_name), output.logits[:, -1].argmax(-1)
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
