"""Chats beside transformers: its text, its ids and, where the template marks them, its mask.

TRL's `assistant_only_loss` takes its mask from `return_assistant_tokens_mask`. A difference is left
where the tag stands within a macro or a captured block: transformers counts what it has printed so
far and misses the place there, marks within the text do not.
"""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ablate.data.templates import render
from ablate.data.tokenizer import Tokenizer
from ablate.roles import Role
from tests.unit.conftest import CORPUS, gpt2_like, llama_like, qwen_like, save
from tests.unit.test_chat_shapes import (
    ADD,
    DATASET,
    SHAPES,
    conversations,
    folder_of,
    labelled,
    row_of,
    said,
    template,
)

ANSWER = set("CETK")
# Pieces of texts: combining marks, emoji joined by zero-width joiners, right to left, line ends,
# control characters, what looks like tags, the templates' own words and tokens.
PIECES = [
    "a", "The", " ", "  ", "\n", "\r\n", "\t", "é", "e\u0301", "\u200b", "\ufeff", "👩‍👩‍👧", "שלום",
    "مرحبا", "\u202e", "\x01", "\x07", "\x7f", "漢字", "1234567", "don't", "<b>", "</think>",
    "<think>", "<|im_start|>assistant\n", "<|im_end|>", "[INST]", "[/INST]", "</s>", "user",
    "assistant:", "\n\n### Response:\n", "{{ m }}", "{% if %}", "\\n", '"', "'", "\u2028", "\ue000",
]  # fmt: skip


def peer(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("name", SHAPES)
def test_masks_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = folder_of(SHAPES[name], True, "special", tmp_path / "t")
    tokenizer, theirs = Tokenizer(folder), peer(folder)
    for talk, messages, tools in conversations(SHAPES[name]):
        given = {"tools": [ADD] if tools else None}
        found = render(row_of(messages, tools, DATASET), DATASET, tokenizer)
        assert found.text == theirs.apply_chat_template(messages, tokenize=False, **given), talk
        both = theirs.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True, **given
        )
        assert tokenizer.encode(found.text).ids.tolist() == both["input_ids"], talk
        mask = [int(label in ANSWER) for _, label in labelled(found, tokenizer)]
        assert mask == both["assistant_masks"], talk


def prefixed() -> Backend:
    """SentencePiece style, with a word mark before every text between two special tokens."""
    made = llama_like()
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    return made


def words() -> Backend:
    """WordPiece style: words and what follows in them, single digits, unknown characters."""
    made = Backend(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=50))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    made.decoder = decoders.WordPiece(cleanup=False)
    tokens = ["[UNK]", "</s>", "<|im_start|>", "<|im_end|>"]
    made.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=tokens, show_progress=False),
    )
    return made


def talk_of(draws: random.Random, shape: Any) -> list[dict[str, Any]]:
    """Return a random conversation that the shape's template knows."""

    def text() -> str:
        return "".join(draws.choices(PIECES, k=draws.randint(1, 9))) + draws.choice("xy\u0301")

    first = [said("system", text())] if shape.system and draws.random() < 0.5 else []
    turns = [(said("user", text()), said("assistant", text())) for _ in range(draws.randint(1, 3))]
    return first + [message for turn in turns for message in turn]


def runs_of(found: Any) -> list[list[Any]]:
    """Return the spans in runs of one role: reasoning is a part of its answer."""
    return [list(spans) for _, spans in itertools.groupby(found.spans, key=lambda s: s.role)]


@pytest.mark.parametrize("make", [gpt2_like, llama_like, qwen_like, prefixed, words])
@pytest.mark.parametrize(
    "name", ["chatml", "llama 2", "llama 3.1", "mistral 3", "gemma 3", "vicuna"]
)
def test_any_conversation(name: str, make: Any, tmp_path: Path) -> None:
    """Text and ids are transformers', and what is said is wholly in its own role."""
    draws = random.Random(name)
    folder = save(
        tmp_path / "t", make(), chat_template=template(SHAPES[name], False), eos_token="</s>"
    )
    tokenizer, theirs = Tokenizer(folder), peer(folder)
    roles = {"system": Role.SYSTEM, "user": Role.INSTRUCTION, "assistant": Role.COMPLETION}
    for _ in range(30):
        messages = talk_of(draws, SHAPES[name])
        found = render(row_of(messages, False, DATASET), DATASET, tokenizer)
        assert found.text == theirs.apply_chat_template(messages, tokenize=False)
        ids = theirs.apply_chat_template(messages, return_dict=True)["input_ids"]
        assert tokenizer.encode(found.text).ids.tolist() == ids
        labelled(found, tokenizer)  # no role leaks into the tokens of another
        runs = ["".join(found.text[s.start : s.end] for s in spans) for spans in runs_of(found)]
        owners = [spans[0].role for spans in runs_of(found)]
        for message in messages:
            own, core = roles[message["role"]], message["content"].strip()
            assert any(core in run for run, role in zip(runs, owners, strict=True) if role == own)
