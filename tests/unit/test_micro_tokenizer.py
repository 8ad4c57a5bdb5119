"""The micro tokenizer: peer equality, round trips, single digits, one token a word."""

import re
from pathlib import Path

import pytest
import tokenizers

from ablate.data.templates import FRAMES
from ablate.data.tokenizer import Tokenizer
from ablate.micro import corpus, exchanges
from ablate.micro.tokenizer import VOCABULARY, save_tokenizer, train_tokenizer
from ablate.micro.world import NUMBERS, VALUES, world


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_tokenizer(corpus.vocabulary_texts(world(), rows=5000))
    save_tokenizer(tokenizer, made, max_length=512)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_the_vocabulary_is_small_and_holds_every_byte(tokenizer):
    assert tokenizer.get_vocab_size() <= VOCABULARY
    assert all(tokenizer.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))


def test_pages_and_unknown_letters_survive_a_round_trip(tokenizer):
    for text in [*corpus.pages(world(), rows=200, seed=5), "zéro ☃ Ωmega <0x41>"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_digit_is_its_own_token(tokenizer):
    pieces = tokenizer.encode("let a = 1873", add_special_tokens=False).tokens
    assert pieces[-4:] == ["1", "8", "7", "3"]


def test_the_templates_words_are_words_that_pretraining_has_seen_apart(tokenizer):
    text = FRAMES["compact"].asked("What is it", "the page")
    fixed = ["▁What", "▁is", "▁it", "\n", "▁Input", ":", "\n"]
    fixed += ["▁the", "▁page", "\n", "▁Answer", ":", "\n"]
    assert tokenizer.encode(text, add_special_tokens=False).tokens == fixed
    told = " ".join(corpus.pages(world(), rows=2000, seed=0))
    for ask in exchanges.ASK_HEADINGS:
        for answer in exchanges.ANSWER_HEADINGS:
            assert re.search(rf"{ask}[^\n]+\n{answer}", told)


def test_a_word_is_one_token_wherever_it_stands(tokenizer):
    for word in [*(v for values in VALUES.values() for v in values), *NUMBERS]:
        number = tokenizer.token_to_id(f"▁{word}")
        for text in (word, f"is {word}", f"a\n{word}", f"\nAnswer:\n{word}"):
            assert tokenizer.encode(text).ids[-1] == number


@pytest.mark.filterwarnings("ignore")
def test_transformers_and_the_light_wrapper_agree(folder):
    from transformers import AutoTokenizer

    peer, ours = AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    text = f"{FRAMES['compact'].asked('Who is it?')}Osta.</s>"
    assert peer(text)["input_ids"] == [ours.bos, *ours.encode(text).ids.tolist()]
    names = ("bos_token", "eos_token", "pad_token")
    assert [getattr(peer, n) for n in names] == ["<s>", "</s>", "<pad>"]
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "She."}]
    chat = peer.apply_chat_template(messages, tokenize=False)
    assert chat == "<s><|user|>\nWho?</s>\n<|assistant|>\nShe.</s>\n"
    assert ours.chat(messages) == chat
