"""A tokenizer without torch: `tokenizers` plus what transformers reads from the folder beside it.

It gives the ids that `AutoTokenizer` gives for the same folder (a test compares them), character
offsets, and the folder's chat template in the sandbox that transformers would use.
"""

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateSyntaxError

from ablate.data import backend
from ablate.data.formats import half_pair
from ablate.data.jinja import MARKS, Takes, rendered, takes_of
from ablate.data.specials import Stop, chat_stop
from ablate.errors import RowError, UserError
from ablate.paths import check_file


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids and, for each, the characters of the text that it stands for."""

    ids: np.ndarray  # int32 (T,)
    starts: np.ndarray  # int64 (T,)
    ends: np.ndarray  # int64 (T,)


class Tokenizer:
    """The tokenizer of a model folder."""

    def __init__(self, folder: str | Path, chat_template: str | Path | None = None) -> None:
        """Read `folder`; `chat_template` is a file that overrides the folder's own.

        Raises:
            UserError: no readable tokenizer.json, or no such template file.
        """
        self.folder = Path(folder)
        self._override = chat_template
        found = backend.backend(self.folder)
        self._tokenizer, self.named_tokens = found.tokenizer, dict(found.named)
        self.bos_token, self.eos_token, self.pad_token = map(found.named.get, backend.NAMED[:3])
        decoder = self._tokenizer.get_added_tokens_decoder()
        self.special_tokens = tuple(token.content for token in decoder.values() if token.special)
        self.added_tokens = {token.content: number for number, token in decoder.items()}
        self.adds_bos = self._adds_bos()
        self._trims = self._trims_added_space()
        templates = _templates(self.folder, chat_template)
        self.chat_template = templates.get("default")
        self.tools_template = templates.get("tool_use", self.chat_template)

    def _adds_bos(self) -> bool:
        """Return whether the tokenizer's own post-processor puts BOS first.

        `add_bos_token` in the config says nothing: transformers drops it for tokenizer.json.
        """
        ids = self._tokenizer.encode("a").ids
        return self.bos_token is not None and ids[:1] == [self.id_of(self.bos_token)]

    def _trims_added_space(self) -> bool:
        """Return whether text behind a special token seems to start one character late.

        Byte-level tokenizers that add a space there and trim offsets trim a character instead.
        """
        for token in [*self.special_tokens, *self.added_tokens][:1]:
            offsets = self._tokenizer.encode(f"{token}ab", add_special_tokens=False).offsets
            return any(start > end for (_, end), (start, _) in itertools.pairwise(offsets))
        return False

    def id_of(self, token: str) -> int:
        """Return the id of a token that is in the vocabulary."""
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise UserError(f"model.path={self.folder}: {token!r} is not in the vocabulary")
        return int(number)

    @property
    def bos(self) -> int | None:
        """The id of the beginning-of-sequence token."""
        return None if self.bos_token is None else self.id_of(self.bos_token)

    @property
    def eos(self) -> int:
        """The id of the stop token."""
        return self.id_of(self.stop)

    @property
    def stop(self) -> str:
        """The stop token's text."""
        if self.eos_token is None:
            raise UserError(f"model.path={self.folder}: its tokenizer names no eos_token")
        return self.eos_token

    @functools.cached_property
    def chat_stop(self) -> Stop | None:
        """What an answer under the chat template ends with; None where nothing is known to."""
        return chat_stop(self.chat, self.added_tokens, self.eos_token)

    @functools.cached_property
    def takes(self) -> Takes:
        """What the chat template takes."""
        return takes_of(self.chat_template or "", tuple(self.named_tokens.items()))

    @property
    def marks_answers(self) -> bool:
        """Whether the chat template marks what is generated."""
        return re.search(r"{%-?\s*generation\b", self.chat_template or "") is not None

    @property
    def pad(self) -> int:
        """The id that fills short rows, the padding token's or else 0; its weight is always 0."""
        return 0 if self.pad_token is None else self.id_of(self.pad_token)

    @property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    @functools.cached_property
    def content_hash(self) -> str:
        """Hash of all that decides ids and roles: see `backend.tokenizer_hash`."""
        return backend.tokenizer_hash(self.folder, self._override)

    def encode(self, text: str) -> Encoded:
        """Return the tokens of `text` alone: special tokens in it are read, none are added."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[Encoded]:
        """Return `encode` of every text."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [self._encoded(each) for each in found]

    def encode_flat(self, texts: Sequence[str]) -> tuple[Encoded, np.ndarray]:
        """Return `encode` of every text, one behind the other, and their sizes, int64 (N,)."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        of_all = itertools.chain.from_iterable
        ids = np.fromiter(of_all(each.ids for each in found), dtype=np.int32)
        flat = np.fromiter(of_all(of_all(each.offsets for each in found)), dtype=np.int64)
        starts, ends = flat.reshape(-1, 2).T
        sizes = np.fromiter((len(each) for each in found), dtype=np.int64, count=len(found))
        if self._trims:
            before = np.concatenate([[0], ends[:-1]])[: len(ends)]
            before[(np.cumsum(sizes) - sizes)[sizes > 0]] = 0
            starts = np.minimum(starts, before)
        return Encoded(ids, starts, ends), sizes

    @functools.cached_property
    def bare_pieces(self) -> "_BarePieces":
        """The text of every token by itself, without white space, by its id."""
        return _BarePieces(self.decode)

    def _encoded(self, found: Any) -> Encoded:
        starts, ends = np.asarray(found.offsets, dtype=np.int64).reshape(-1, 2).T
        if self._trims:
            starts = np.minimum(starts, np.concatenate([[0], ends[:-1]])[: len(starts)])
        return Encoded(np.asarray(found.ids, dtype=np.int32), starts, ends)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`, special tokens included."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))

    def piece(self, number: int) -> str:
        """Return the vocabulary's own string for an id."""
        return str(self._tokenizer.id_to_token(int(number)) or f"<{number}?>")

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] = (),
        generation_prompt: bool = False,
        generation_marks: tuple[str, str] = ("", ""),
    ) -> str:
        """Return the chat template's text for `messages`.

        Args:
            messages: turns with role and content.
            tools: definitions of tools.
            generation_prompt: whether the text goes on to where an answer begins.
            generation_marks: put before and after what the template marks as generated.

        Raises:
            UserError: the folder has no chat template.
            RowError: the template refuses the messages.
        """
        template = self.tools_template if tools else self.chat_template
        if template is None:
            raise UserError(
                f"dataset.template=chat: {self.folder} has no chat template; give "
                "model.chat_template=FILE or dataset.template=alpaca"
            )
        given = {"add_generation_prompt": generation_prompt, MARKS: generation_marks}
        try:
            text = rendered(template, messages, named=self.named_tokens, tools=tools, **given)
        except TemplateSyntaxError as error:
            file = self._override or self.folder
            setting = "model.path" if self._override is None else "model.chat_template"
            raise UserError(
                f"{setting}={file}: line {error.lineno} of the chat template: {error.message}"
            ) from None
        except Exception as error:  # a template is a program: it may fail in any way
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RowError(f"the chat template says: {reason}") from None
        if half := half_pair(text):
            raise RowError(f"its text holds {half}")
        return text


class _BarePieces(dict[int, str]):
    """Texts of tokens by id, each decoded when it is first asked for."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode

    def __missing__(self, number: int) -> str:
        self[number] = "".join(self._decode([number]).split())
        return self[number]


def _templates(folder: Path, override: str | Path | None) -> dict[str, str]:
    """Return the folder's chat templates by name, as transformers finds them."""
    if override is not None:
        check_file("model.chat_template", override)
        return {"default": _text(Path(override))}
    files = {file.stem: file for file in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: _text(file) for name, file in files.items()}
    found = backend.config(folder).get("chat_template")
    if isinstance(found, str | None):
        return {} if found is None else {"default": found}
    whole = isinstance(found, list) and all(isinstance(entry, dict) for entry in found)
    if not whole or not all({"name", "template"} <= entry.keys() for entry in found):
        raise UserError(
            f"model.path={folder / 'tokenizer_config.json'}: chat_template must be text, or a list "
            "of objects with name and template"
        )
    return {str(entry["name"]): str(entry["template"]) for entry in found}


def _text(file: Path) -> str:
    """Return the text of a template's file."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"model.chat_template={file}: not UTF-8 text") from None
