"""Ids as transformers gives them, whatever class a folder names."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Raw
from tokenizers import normalizers

from ablate.data import backend
from ablate.data.tokenizer import Tokenizer
from ablate.errors import UserError

pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TEXTS = [
    "<s>[INST] hello [/INST]",
    "Below is an instruction.",
    " two  spaces, naïve café 漢字 🙂\n\n\ttab 12345",
    "### Response:Paris</s> and <|im_start|>user\nHi<|im_end|>\n",
    "a  b <s> c",
    "e\u0301 is normalised",
    "",
]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
END = {"eos_token": "<|endoftext|>"}
# How it is told: which small tokenizer, its tokenizer_config.json, its config.json.
FOLDERS = {
    "general": ("llama", {"tokenizer_class": "PreTrainedTokenizerFast", **NAMES}, None),
    "general, of a llama": ("llama", {"tokenizer_class": "TokenizersBackend", **NAMES}, "llama"),
    "LlamaTokenizer": (
        "llama",
        {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, **NAMES},
        "llama",
    ),
    "LlamaTokenizer, no bos": (
        "llama",
        {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False, **NAMES},
        "llama",
    ),
    "LlamaTokenizer, no prefix": (
        "llama",
        {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False, **NAMES},
        "llama",
    ),
    "GPT2Tokenizer": ("gpt2", {"tokenizer_class": "GPT2Tokenizer", **END}, "gpt2"),
    "GPT2Tokenizer, prefix": (
        "gpt2",
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, **END},
        "gpt2",
    ),
    "Qwen2Tokenizer": ("qwen", {"tokenizer_class": "Qwen2Tokenizer", **END}, "qwen3"),
    "general, of a qwen2": ("qwen", {"tokenizer_class": "PreTrainedTokenizerFast", **END}, "qwen2"),
    "no class": ("qwen", END, "qwen2"),
    "tokens in the config": (
        "gpt2",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": {"500": {"content": "<|im_end|>", "special": False}},
            **END,
        },
        None,
    ),
}


def legacy_llama(folder: Path) -> Raw:
    """Llama 2's own tokenizer.json: word marks by a normalizer, after every special token too."""
    found = Raw.from_file(str(folder / "tokenizer.json"))
    found.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    state = json.loads(found.to_str())
    return Raw.from_str(json.dumps(state | {"pre_tokenizer": None}))


@pytest.fixture
def made(tokenizer_folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        kind, settings, model_type = FOLDERS[name]
        source = tokenizer_folders[kind]
        raw = legacy_llama(source) if kind == "llama" else None
        folder = tmp_path / "model"
        folder.mkdir()
        text = raw.to_str() if raw else (source / "tokenizer.json").read_text()
        (folder / "tokenizer.json").write_text(text)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        if model_type:
            (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        return folder

    return make


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_are_those_of_transformers(name, made):
    from transformers import AutoTokenizer

    folder = made(name)
    peer = AutoTokenizer.from_pretrained(folder)
    for ours in (Tokenizer(folder), Tokenizer(folder)):  # made, then from the cache
        for text in TEXTS:
            ids = ours.encode(text).ids.tolist()
            assert ids == peer(text, add_special_tokens=False).input_ids, text
        assert ours.adds_bos == (peer("a").input_ids[0] == peer.bos_token_id)
        assert (ours.bos_token, ours.eos_token) == (peer.bos_token, peer.eos_token)
        assert ours.vocab_size == len(peer)
        assert ours.added_tokens == peer.get_added_vocab()


def test_the_file_alone_says_something_else(made):
    """The case is a case: what stands in tokenizer.json gives other ids than transformers."""
    folder = made("LlamaTokenizer")
    alone = Raw.from_file(str(folder / "tokenizer.json"))
    ids = alone.encode(TEXTS[0], add_special_tokens=False).ids
    assert ids != Tokenizer(folder).encode(TEXTS[0]).ids.tolist()


def test_transformers_is_asked_once_and_never_for_a_plain_folder(made, monkeypatch):
    folder = made("LlamaTokenizer")
    hashed = Tokenizer(folder).content_hash
    monkeypatch.setattr(backend, "transformers_tokenizer", None)
    assert Tokenizer(folder).content_hash == hashed
    monkeypatch.setattr(backend.metadata, "version", lambda name: "another")
    with pytest.raises(TypeError):  # another transformers may build another tokenizer
        Tokenizer(folder)


def test_a_plain_folder_is_read_as_it_stands(made, monkeypatch):
    monkeypatch.setattr(backend, "transformers_tokenizer", None)
    folder = made("general, of a llama")
    assert backend.plain(folder)
    Tokenizer(folder)


def test_a_folder_that_transformers_cannot_read_is_one_line(made):
    folder = made("LlamaTokenizer")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"model.path=.*: not a tokenizer \(") as error:
        Tokenizer(folder)
    assert "\n" not in str(error.value)
