"""Tiny tokenizers in the hub's folder format, made here: no download, no vocabulary in the tree."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "Below is an instruction that describes a task. Write a response.",
    "### Instruction:\nName the capital of France.\n\n### Response:Paris is the capital.",
    "The quick brown fox jumps over the lazy dog, 1234567890 times; isn't that naïve?",
    "def f(x):\n    return x + 1\n",
] * 4

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind to all.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def save(folder: Path, tokenizer: Tokenizer, **config: object) -> Path:
    """Write a tokenizer as a model folder has it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def special(*names: str) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def byte_level(merges: list[tuple[str, str]], *names: str) -> Tokenizer:
    """A tokenizer whose tokens are bytes, apart from special tokens and the given merges."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"".join(pair): len(vocab) + i for i, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special(*names))
    return tokenizer


def _trained(tokenizer: Tokenizer, alphabet: list[str], *names: str) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special(*names),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def llama_like() -> Tokenizer:
    """SentencePiece style: word marks, byte fallback, BOS by the post-processor."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    _trained(tokenizer, [], "<unk>", "<s>", "</s>", *bytes_)
    state = json.loads(tokenizer.to_str())
    kept = ("<unk>", "<s>", "</s>")  # the bytes are plain vocabulary, not added tokens
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in kept]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def gpt2_like() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return _trained(tokenizer, pre_tokenizers.ByteLevel.alphabet(), "<|endoftext|>")


def qwen_like() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = (
        r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return _trained(tokenizer, pre_tokenizers.ByteLevel.alphabet(), *names)


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny tokenizers: llama, gpt2 and qwen by their build, bytes for hand counts."""
    root = tmp_path_factory.mktemp("tokenizers")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    end = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    bos = byte_level([], "<s>", "</s>")
    bos.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos.token_to_id("<s>"))]
    )
    chat = byte_level([], "<|im_start|>", "<|im_end|>", "<|endoftext|>")
    return {
        "llama": save(root / "llama", llama_like(), chat_template=LLAMA2, **names),
        "gpt2": save(
            root / "gpt2", gpt2_like(), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
        ),
        "qwen": save(root / "qwen", qwen_like(), **end),
        "bytes": save(root / "bytes", chat, **end),
        "bos": save(root / "bos", bos, bos_token="<s>", eos_token="</s>"),
    }


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny Llama, frozen, whose predictions are far from uniform."""
    from tests.architectures import model_of  # torch: most tests need none

    return model_of()


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folders: dict[str, Path]) -> Any:
    """The tiny tokenizer in Llama's build, as transformers reads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folders["llama"])


@pytest.fixture
def make_bytes(tmp_path: Path) -> Callable[..., Path]:
    """A function that saves a tokenizer of bytes with special tokens, merges and a config."""

    def make(*names: str, merges: Sequence[tuple[str, str]] = (), **config: object) -> Path:
        folder = tmp_path / f"made-{len(list(tmp_path.iterdir()))}"
        return save(folder, byte_level(list(merges), *names), **config)

    return make


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that no other test has filled."""
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session", autouse=True)
def fewer_labellings() -> Iterator[None]:
    """Draw a fifth of a page's random labels: tests of what they say draw their own number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.questions.controls.false_positives.RELABELLINGS", 20)
        yield
