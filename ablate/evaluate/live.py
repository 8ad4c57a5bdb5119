"""lm-eval's view of the model at hand: its `HFLM`, with short ways that give the same answers.

Text is tokenised once per process, answers to one question share its context, greedy decoding drops
rows that have ended. Models that the short ways are not known to be exact for take `HFLM`'s own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from ablate.evaluate import choices, generate
from ablate.evaluate.shapes import inner, short_ways

MEMO_TOKENS = 2**24  # 64 MiB of token ids; texts beyond that are tokenised anew
STOP_TEXT_EVERY = 8  # steps between two looks for a stop string; what follows one is cut off anyway
# Settings of a model's generation_config that greedy decoding does not read.
UNREAD = {
    "_from_model_config", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version",
    "max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "use_cache",
}  # fmt: skip


class TokenMemo:
    """A cache of the token ids of texts, up to a number of tokens."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bool | None], Sequence[int]] = {}
        self._room = MEMO_TOKENS

    def get(self, key: tuple[str, bool | None]) -> list[int] | None:
        """Return the ids kept under `key`, a text and whether special tokens are added."""
        found = self._known.get(key)
        return None if found is None else list(found)

    def keep(self, key: tuple[str, bool | None], ids: list[int]) -> None:
        """Keep `ids` while there is room."""
        if self._room >= len(ids):
            self._room -= len(ids)
            self._known[key] = tuple(ids)


class LiveLM(HFLM):
    """A model in memory and its tokenizer, as lm-eval asks for them."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, *, batch_size: int, memo: TokenMemo):
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self._memo = memo
        self._short_ways = short_ways(model)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Return the ids of `string`, tokenised once per process."""
        key = (string, add_special_tokens)
        ids = self._memo.get(key)
        if ids is None:
            ids = list(super().tok_encode(string, add_special_tokens))
            self._memo.keep(key, ids)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of every (context, continuation)."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Return the text generated for every request."""
        return super().generate_until(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of every text as a whole."""
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        pairs = [(context, answer) for _, context, answer in requests]
        fits = all(len(context) + len(answer) <= self.max_length for context, answer in pairs)
        if self._short_ways and fits and override_bs is None:
            return choices.loglikelihoods(self.model, pairs, batch_size=self.batch_size)
        return super()._loglikelihood_tokens(requests, True, override_bs)

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Tensor:
        if not (self._short_ways and self._is_plain_greedy(generation_kwargs)):
            return super()._model_generate(context, max_length, stop, **generation_kwargs)
        new_BT = generate.greedy(
            self.model,
            context,
            generation_kwargs["attention_mask"],
            max_new=max_length - context.shape[1],
            ended=self._ended_at(stop),
            pad=self.tokenizer.pad_token_id,
        )
        return torch.cat([context, new_BT], dim=1)

    def _is_plain_greedy(self, kwargs: dict[str, Any]) -> bool:
        asked = set(kwargs) <= {"attention_mask", "do_sample", "temperature"}
        drawn = bool(kwargs.get("do_sample")) or kwargs.get("temperature", 0.0) > 0
        settings = inner(self.model).generation_config.to_diff_dict()
        return asked and not drawn and {name for name, on in settings.items() if on} <= UNREAD

    def _ended_at(self, stop: list[str]) -> generate.Ended:
        """Return the test for a row's end: a token that ends text, or one of the stop strings."""
        configured = inner(self.model).generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        ids = [i for i in {*ends, self.tokenizer.eos_token_id} if i is not None]
        stops_S = torch.tensor(ids, device=self.device)
        words = [word for word in stop if word]

        def ended(new_BT: Tensor) -> Tensor:
            done_B = torch.isin(new_BT[:, -1], stops_S)
            if words and new_BT.shape[1] % STOP_TEXT_EVERY == 0:
                texts = self.tokenizer.batch_decode(new_BT, skip_special_tokens=True)
                said = [any(word in text for word in words) for text in texts]
                done_B = done_B | torch.tensor(said, device=done_B.device)
            return done_B

        return ended
