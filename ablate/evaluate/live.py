"""lm-eval's view of the model at hand: its `HFLM`, with short ways that give the same answers.

Text is tokenised once per process, answers to one question share its context, greedy decoding drops
rows that have ended. Models that the short ways are not known to be exact for take `HFLM`'s own.
"""

import functools
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from ablate.data.specials import Stop, adds_bos_to, chat_stop
from ablate.errors import UserError
from ablate.evaluate import choices, generate, passes
from ablate.evaluate.requests import chat_text
from ablate.evaluate.shapes import inner, short_ways
from ablate.evaluate.split import over_processes

MEMO_TOKENS = 2**24  # 64 MiB of token ids; texts beyond that are tokenised anew
Pair = tuple[list[int], list[int]]  # token ids of a context and of an answer behind it
# Settings of a model's generation_config that greedy decoding does not read.
UNREAD = {
    "_from_model_config", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version",
    "max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "use_cache",
}  # fmt: skip


class TokenMemo:
    """A cache of the token ids of texts, and of contexts with answers, up to a number of tokens."""

    def __init__(self) -> None:
        self._texts: dict[tuple[str, bool], array[int]] = {}
        self._pairs: dict[tuple[str, str, bool], tuple[array[int], array[int]]] = {}
        self._room = MEMO_TOKENS

    def text(self, text: str, bos: bool, encode: Callable[[], list[int]]) -> list[int]:
        """Return the ids of a text, with BOS before it or not; `encode` makes them."""
        found = self._texts.get((text, bos))
        if found is not None:
            return found.tolist()
        ids = encode()
        if self._takes(ids):
            self._texts[text, bos] = array("i", ids)
        return ids

    def pair(
        self, context: str, answer: str, chat: bool, encode: Callable[[str, str], Pair]
    ) -> Pair:
        """Return the ids of a context and of the answer behind it; `encode` makes them."""
        found = self._pairs.get((context, answer, chat))
        if found is not None:
            return found[0].tolist(), found[1].tolist()
        ids = encode(context, answer)
        if self._takes(*ids):
            self._pairs[context, answer, chat] = array("i", ids[0]), array("i", ids[1])
        return ids

    def _takes(self, *ids: list[int]) -> bool:
        """Return whether there is room for these, which is then theirs."""
        size = sum(map(len, ids))
        fits = size <= self._room
        self._room -= size * fits
        return fits


class PromptEncoder:
    """Token ids of prompts as training has them (`data.specials`), made once per process."""

    def __init__(self, tokenizer: Tokenizer, memo: TokenMemo, *, chat: bool) -> None:
        """Take a tokenizer; `chat` says that its chat template made the prompts."""
        self._tokenizer, self._memo, self.chat = tokenizer, memo, chat
        self._bos, self._bos_id = tokenizer.bos_token, tokenizer.bos_token_id
        self._adds_bos = tokenizer("a").input_ids[:1] == [self._bos_id]

    def __call__(self, text: str, *, bos: bool = True) -> list[int]:
        """Return the ids of `text`; `bos` says that BOS may stand before it."""
        bos = bos and adds_bos_to(text, self._bos, adds_bos=self._adds_bos, chat=self.chat)

        def encode() -> list[int]:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
            return [self._bos_id] * bos + ids

        return self._memo.text(text, bos, encode)

    def pair(self, context: str, answer: str, encode: Callable[[str, str], Pair]) -> Pair:
        """Return the ids of a context and of the answer behind it; `encode` is lm-eval's way."""
        return self._memo.pair(context, answer, self.chat, encode)


class LiveLM(HFLM):
    """A model in memory and its tokenizer, as lm-eval asks for them."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        memo: TokenMemo,
        batch_tokens: int = passes.TOKENS,
        chat: bool = False,
    ):
        """Take a model; `chat` says that the chat template made the prompts."""
        device = next(model.parameters()).device.type
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            # lm-eval's own passes leave the autocast that they are called in unless told of it
            mixed_precision_dtype=torch.bfloat16 if torch.is_autocast_enabled(device) else None,
        )
        self._encode, self._tokens = PromptEncoder(tokenizer, memo, chat=chat), batch_tokens
        self._short_ways = short_ways(model)
        self._stop = chat_stop_of(tokenizer) if chat else None
        self._max_length = self.max_length  # lm-eval would find it anew for every request

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Return the ids of `string`; `add_special_tokens` is None for a prompt."""
        ids = self._encode(string, bos=add_special_tokens is not False)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def _encode_pair(self, context: str, continuation: str) -> Pair:
        return self._encode.pair(context, continuation, super()._encode_pair)

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return the ids of prompts and their mask (B, L), padded on the left."""
        rows = [self.tok_encode(s, left_truncate_len=left_truncate_len) for s in strings]
        return generate.left_padded(rows, self.device)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of every (context, continuation)."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Return the text generated for every request, up to a stop of the task or the template."""
        asked = [self._stopping(request) for request in requests]
        ask = super().generate_until
        # What is drawn at random depends on what was drawn before: one process draws all of it.
        drawn = any(_samples(request) for request in asked)
        batches = [list(range(len(asked)))] if drawn else self._batches(asked)
        return over_processes(batches, lambda some: ask([asked[n] for n in some], True))

    def _batches(self, asked: list[Any]) -> list[list[int]]:
        """Return the requests for generated text that lm-eval puts into one batch."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(asked):
            alike.setdefault(repr(request.args[1]), []).append(number)
        found = []
        for numbers in alike.values():
            texts = {n: asked[n].args[0] for n in numbers}
            numbers.sort(key=lambda n: (-len(self.tok_encode(texts[n])), texts[n]))
            rows = self.batch_size
            found += [numbers[start : start + rows] for start in range(0, len(numbers), rows)]
        return found

    def _stopping(self, request: Any) -> Any:
        """Return a request that stops at the chat template's stop too."""
        if self._stop is None:
            return request
        prompt, settings = request.args
        until = settings.get("until") or []
        words = [*([until] if isinstance(until, str) else until), *self._stop.strings]
        return replace(request, arguments=(prompt, {**settings, "until": words}))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of every text as a whole; no chat template made it."""
        chat, self._encode.chat = self._encode.chat, False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)
        finally:
            self._encode.chat = chat

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        for texts, _, answer in requests:
            if not answer:
                raise UserError(swallowed(*texts))
        fits = [len(context) + len(answer) <= self.max_length for _, context, answer in requests]
        short = [
            n for n, fit in enumerate(fits) if fit and self._short_ways and override_bs is None
        ]
        pairs = [requests[n][1:] for n in short]
        size = {"batch_size": self.batch_size, "batch_tokens": self._tokens}
        found = dict(zip(short, choices.loglikelihoods(self.model, pairs, **size), strict=True))
        rest = [n for n in range(len(requests)) if n not in found]
        found |= zip(rest, self._by_lm_eval([requests[n] for n in rest]), strict=True)
        return [found[n] for n in range(len(requests))]

    def _by_lm_eval(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Return what lm-eval's own way gives, in batches whose logits it can hold at once."""
        lengths = [min(self.max_length, len(c) + len(a)) for _, c, a in requests]
        tokens = min(self._tokens, passes.LOGITS // self.vocab_size)
        at_once = self.batch_size * max(lengths, default=0) <= tokens
        ask = super()._loglikelihood_tokens

        def answered(numbers: list[int]) -> list[tuple[float, bool]]:
            some = [requests[n] for n in numbers]
            if at_once:
                return ask(some, True)
            found: dict[int, tuple[float, bool]] = {}
            sizes = [lengths[n] for n in numbers]
            for part in passes.batches(sizes, rows=self.batch_size, tokens=tokens):
                found |= zip(part, ask([some[i] for i in part], True), strict=True)
            return [found[i] for i in range(len(some))]

        parts = passes.batches(lengths, rows=self.batch_size, tokens=tokens)
        return over_processes(list(parts), answered)

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Tensor:
        """Return prompts with what is generated after them, in batches within the budget."""
        mask_BL, (rows, size) = generation_kwargs.pop("attention_mask"), context.shape
        if rows * max_length <= self._tokens:
            return self._generated(context, mask_BL, max_length, stop, **generation_kwargs)
        made_BT = context.new_full((rows, max_length), self.tokenizer.pad_token_id)
        made_BT[:, :size] = context
        lengths = [length + max_length - size for length in mask_BL.sum(1).tolist()]
        for some in passes.batches(lengths, rows=rows, tokens=self._tokens):
            left = max_length - lengths[some[0]]  # the longest's padding
            part, mask = context[some, left:], mask_BL[some, left:]
            new = self._generated(part, mask, lengths[some[0]], stop, **generation_kwargs)
            made_BT[some, left : left + new.shape[1]] = new
        return made_BT

    def _generated(
        self, context: Tensor, mask_BL: Tensor, max_length: int, stop: list[str], **kwargs: Any
    ) -> Tensor:
        ends = self._ends(stop)
        if not (self._short_ways and self._is_plain_greedy(kwargs)):
            kwargs = {"eos_token_id": list(ends.ids), **kwargs, "attention_mask": mask_BL}
            return super()._model_generate(context, max_length, stop, **kwargs)
        new_BT = generate.greedy(
            self.model,
            context,
            mask_BL,
            max_new=max_length - context.shape[1],
            ends=ends,
            pad=self.tokenizer.pad_token_id,
            batch_tokens=self._tokens,
        )
        return torch.cat([context, new_BT], dim=1)

    def _is_plain_greedy(self, kwargs: dict[str, Any]) -> bool:
        asked = set(kwargs) <= {"do_sample", "temperature"}
        drawn = bool(kwargs.get("do_sample")) or kwargs.get("temperature", 0.0) > 0
        settings = inner(self.model).generation_config.to_diff_dict()
        return asked and not drawn and {name for name, on in settings.items() if on} <= UNREAD

    def _ends(self, stop: list[str]) -> generate.Ends:
        """Return what ends a row: a token that ends text or an answer, or one of the strings."""
        configured = inner(self.model).generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        ends = [*ends, self.tokenizer.eos_token_id, *(self._stop.ids if self._stop else ())]
        ids = tuple(dict.fromkeys(i for i in ends if i is not None))
        decode = functools.partial(self.tokenizer.batch_decode, skip_special_tokens=True)
        return generate.Ends(ids, tuple(word for word in stop if word), decode)


def _samples(request: Any) -> bool:
    """Return whether a request asks for an answer that is drawn at random."""
    settings = request.args[1]
    return bool(settings.get("do_sample")) or (settings.get("temperature") or 0.0) > 0


def swallowed(context: str, answer: str) -> str:
    """Return what is wrong with an answer that has no token of its own behind its context."""
    return (
        f"the answer {answer[:40]!r} has no token of its own behind {context[-40:]!r}: this "
        "tokenizer joins them, and lm-eval cannot score it; change the task's target_delimiter"
    )


def chat_stop_of(tokenizer: Tokenizer) -> Stop | None:
    """Return the stop of a tokenizer's chat template; None where it has none."""

    def render(messages: Sequence[Mapping[str, str]]) -> str:
        try:
            return str(chat_text(tokenizer)(messages, add_generation_prompt=False))
        except Exception as error:  # a template is a program: it may fail in any way
            raise UserError(str(error)) from None

    try:
        return chat_stop(render, tokenizer.get_added_vocab(), tokenizer.eos_token)
    except UserError:
        return None
