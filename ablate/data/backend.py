"""The `tokenizers` object of a model folder, built as transformers builds it.

transformers reads tokenizer.json as it stands for its general classes alone. The others, such as
LlamaTokenizer, take the vocabulary and build the rest anew: the same text may get other ids. What
is scored goes through transformers, so what is trained on has to be cut as it cuts. Its
result is kept in the cache: transformers takes seconds to import.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import tokenizers

from ablate.data.cache import write
from ablate.data.hashes import file_hash
from ablate.errors import UserError, brief
from ablate.paths import cache_dir

NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")
# A folder that says no more than this is read as it stands: a test compares it with transformers.
PLAIN_SETTINGS = {
    "tokenizer_class", "model_max_length", "clean_up_tokenization_spaces", "chat_template",
    "additional_special_tokens", "extra_special_tokens", *NAMED,
}  # fmt: skip
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "config.json")
FILES = (  # all of a folder that decides ids and roles
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
TOOLS_TEMPLATE = "additional_chat_templates/tool_use.jinja"  # few folders have one
# Code in a model's folder is refused; else transformers asks at the terminal whether to run it.
SAFE = {"trust_remote_code": False}
PLAIN_MODELS = (None, "llama")  # for some model types transformers overrules the class


@dataclass(frozen=True, slots=True)
class Backend:
    """A tokenizer, and the tokens that have a name: bos_token, eos_token, ..."""

    tokenizer: tokenizers.Tokenizer
    named: Mapping[str, str]


def backend(folder: Path) -> Backend:
    """Return the tokenizer of `folder`, neither padding nor truncating.

    Raises:
        UserError: no tokenizer.json, or one that cannot be read.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"model.path={folder}: has no tokenizer.json; only fast tokenizers have offsets"
        )
    found = _as_it_stands(file) if plain(folder) else _by_transformers(folder)
    found.tokenizer.no_truncation()
    found.tokenizer.no_padding()
    return found


def tokenizer_hash(folder: str | Path, chat_template: str | Path | None) -> str:
    """Return a hash of all that decides ids and roles of a text under the tokenizer of `folder`.

    Its files, the file that overrides its chat template and, where transformers builds the
    tokenizer, the version of that. A plan asks for it 10,000 times, hence plain strings.
    """
    files = [file_hash(os.path.join(folder, name)) for name in FILES]
    if chat_template is not None:
        files.append(file_hash(chat_template))
    elif os.path.isfile(with_tools := os.path.join(folder, TOOLS_TEMPLATE)):
        files.append(file_hash(with_tools))
    if not plain(folder):
        files.append(f"transformers {metadata.version('transformers')}")
    return hashlib.sha256("\0".join(files).encode()).hexdigest()


def plain(folder: str | Path) -> bool:
    """Return whether transformers reads the folder's tokenizer.json as it stands."""
    return _plain(str(folder), *(file_hash(os.path.join(folder, name)) for name in SETTINGS))


@functools.lru_cache(maxsize=256)
def _plain(folder: str, *hashes: str) -> bool:
    settings = config(Path(folder))
    kind = content(Path(folder) / "config.json").get("model_type")
    general = settings.get("tokenizer_class") in GENERAL
    return general and kind in PLAIN_MODELS and set(settings) <= PLAIN_SETTINGS


def config(folder: Path) -> dict[str, Any]:
    """Return the settings of a folder's tokenizer."""
    return content(folder / "special_tokens_map.json") | content(folder / "tokenizer_config.json")


def content(file: Path) -> dict[str, Any]:
    """Return the table in a JSON file; an empty one where there is no file.

    Raises:
        UserError: it is broken.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"model.path={file}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"model.path={file}: broken JSON ({brief(error)})") from None
    if not isinstance(found, dict):
        raise UserError(f"model.path={file}: must be a table of settings")
    return found


def transformers_tokenizer(folder: Path) -> Any:
    """Return the tokenizer that transformers makes of `folder`.

    Raises:
        UserError: it makes none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, **SAFE)
    except Exception as error:  # whatever a tokenizer's own code raises
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"model.path={folder}: not a tokenizer ({first})") from None


def _as_it_stands(file: Path) -> Backend:
    settings = config(file.parent)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare exceptions
        raise UserError(f"model.path={file}: not a tokenizer ({error})") from None
    for name in NAMED:
        if not isinstance(_written(settings.get(name)), str | None):
            token = settings[name]
            raise UserError(
                f"model.path={file.parent / SETTINGS[0]}: {name}={brief(token)}: must be text"
            )
    found = {name: _text(settings.get(name)) for name in NAMED}
    named = {name: token for name, token in found.items() if token is not None}
    more = settings.get("extra_special_tokens") or []
    extra = [*(settings.get("additional_special_tokens") or [])]
    extra += more.values() if isinstance(more, Mapping) else more
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    new = [t for t in (*named.values(), *map(_text, extra)) if t is not None and t not in known]
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, special=True) for t in new])
    return Backend(tokenizer, named)


def _text(token: Any) -> str | None:
    value = _written(token)
    return None if value is None else str(value)


def _written(token: Any) -> Any:
    """Return what a token says, which is written as it is or as an object with its content."""
    return token.get("content") if isinstance(token, Mapping) else token


def _by_transformers(folder: Path) -> Backend:
    kept = cache_dir() / "tokenizers" / f"{tokenizer_hash(folder, None)}.json"
    stored = content(kept)
    if not stored:
        made = transformers_tokenizer(folder)
        if not getattr(made, "is_fast", False):
            raise UserError(f"model.path={folder}: no fast tokenizer; only those have offsets")
        named = {name: str(token) for name in NAMED if (token := getattr(made, name)) is not None}
        stored = {"tokenizer": made.backend_tokenizer.to_str(), "named": named}
        write(kept, json.dumps(stored).encode())
    return Backend(tokenizers.Tokenizer.from_str(stored["tokenizer"]), stored["named"])
