"""The tokenizer of the micro models: byte-fallback BPE with single digits, at most 1,024 entries.

A word is the same token wherever it stands: the word-start mark is also put after a line break.
The compact template's words are words like others, which pretraining has seen.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

VOCABULARY = 1024
SPECIAL = ("<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] | trim + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def train_tokenizer(texts: list[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Return a tokenizer of at most `vocabulary` entries, the same for the same `texts`."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(behavior="isolated"),
        ]
    )
    room = vocabulary - 1  # the line break is added below
    trainer = trainers.BpeTrainer(
        vocab_size=room, special_tokens=[*SPECIAL, *BYTES], show_progress=False
    )
    lines = [line for text in texts for line in text.split("\n") if line]
    tokenizer.train_from_iterator(lines, trainer)
    return _finished(tokenizer)


def _finished(tokenizer: Tokenizer) -> Tokenizer:
    """Return the trained `tokenizer` with its decoder, special tokens and line break."""
    state = json.loads(tokenizer.to_str())
    # The trainer made the byte entries special; a byte is an ordinary entry of the vocabulary.
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in BYTES]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_tokens([AddedToken("\n", normalized=False, special=False)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<=\n) "), ""),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)]
    )
    return tokenizer


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """Return the contents of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.dumps(tokenizer_config(max_length), indent=1)
    (folder / "tokenizer_config.json").write_text(config + "\n")
