"""A judge that is a model on this machine: the likeliest verdict behind the question."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from ablate.config.schema import Model
from ablate.errors import UserError
from ablate.evaluate.live import LiveLM, TokenMemo
from ablate.evaluate.requests import chat_template, quiet
from ablate.judge.asked import OPTIONS, Question, Reply, filled
from ablate.models.files import resolve
from ablate.models.load import device_of, load, load_tokenizer

AT_ONCE = 64  # questions between two writes of the replies


class LocalJudge:
    """A causal language model that is asked for the log-probability of every verdict.

    Nothing is generated, so that each reply is a verdict. A tokenizer with a chat template is asked
    through it.
    """

    def __init__(self, path: str, form: str, *, batch_size: int = 8, device: str = "auto") -> None:
        """Take a folder in the hub's format or a hub id, and the wording of the questions.

        Raises:
            UserError: there is no such model, or it is not of safetensors alone.
        """
        source = "local" if Path(path).expanduser().exists() else "hub"
        model = Model(name="judge", source=source, path=path)  # type: ignore[arg-type]
        self.name, self._form, self._files = path, form, resolve(model)
        self._batch_size, self._device = batch_size, device
        self._lm: LiveLM | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """The hash of the model's files, and the wording."""
        return {"kind": "local", "model": self._files.content_hash, "prompt": self._form}

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """Yield the likeliest verdict for every question, with all log-probabilities.

        Raises:
            UserError: a question has more tokens than the model takes.
        """
        for start in range(0, len(questions), AT_ONCE):
            some = questions[start : start + AT_ONCE]
            yield from enumerate(self._replies(some), start)

    def _replies(self, questions: Sequence[Question]) -> Iterator[Reply]:
        lm = self._loaded()
        requests, sizes = [], []
        for number, question in enumerate(questions):
            text, space = self._text(question)
            length = len(lm.tok_encode(text))
            if length >= lm.max_length:
                raise UserError(
                    f"--judge={self.name}: a question has {length:,} tokens and the model takes "
                    f"{lm.max_length:,}"
                )
            options = [f"{space}{option}" for option in OPTIONS[question.mode]]
            requests += [
                Instance("loglikelihood", {}, (text, option), i, ("judge", number, 1))
                for i, option in enumerate(options)
            ]
            sizes.append(len(options))
        found = iter(lm.loglikelihood(requests))
        for question, size in zip(questions, sizes, strict=True):
            values = [next(found)[0] for _ in range(size)]
            options = list(OPTIONS[question.mode])
            best = max(range(size), key=values.__getitem__)
            logs = {o: round(v, 6) for o, v in zip(options, values, strict=True)}
            yield Reply(options[best], extra={"logprobs": logs})

    def _text(self, question: Question) -> tuple[str, str]:
        """Return the text before the verdict, and what stands between the two."""
        text, lm = filled(self._form, question), self._loaded()
        if lm.tokenizer.chat_template is None:
            return text, " "
        return chat_template(lm.tokenizer)([{"role": "user", "content": text}]), ""

    def _loaded(self) -> LiveLM:
        if self._lm is None:
            tokenizer = load_tokenizer(self._files.folder)
            model = load(self._files, device=device_of(self._device)).eval()
            chat = tokenizer.chat_template is not None
            with quiet():
                self._lm = LiveLM(
                    model, tokenizer, batch_size=self._batch_size, memo=TokenMemo(), chat=chat
                )
        return self._lm
