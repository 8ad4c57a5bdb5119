"""Stops and BOS: what published chat templates end an answer with, written out by hand."""

from collections.abc import Mapping

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ablate.data.specials import Stop, adds_bos_to, chat_stop, stop_of, stopped
from ablate.data.tokenizer import Tokenizer


def turns(said):
    return "{% for m in messages %}{{ " + said + " }}{% endfor %}"


def by_role(user, assistant):
    return turns(f"({user}) if m.role == 'user' else ({assistant})")


# Family: (template, added tokens, text of the stop, tokens of the stop).
CHATML = turns("'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'")
OWN_SYSTEM = "{{% if messages[0].role != 'system' %}}{}{{% endif %}}"
SHAPES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>", ["<|im_end|>"]),
    "chatml without tokens of its own": (CHATML, ["</s>"], "<|im_end|>", []),
    "llama 2": (
        by_role("'<s>[INST] ' + m.content + ' [/INST]'", "' ' + m.content + ' </s>'"),
        ["<s>", "</s>"],
        " </s>",
        ["</s>"],
    ),
    "llama 3": (
        "<|bos|>" + turns("'<|head|>' + m.role + '<|/head|>\n\n' + m.content + '<|eot_id|>'"),
        ["<|bos|>", "<|head|>", "<|/head|>", "<|eot_id|>"],
        "<|eot_id|>",
        ["<|eot_id|>"],
    ),
    "gemma": (
        turns("'<start_of_turn>' + m.role + '\n' + m.content + '<end_of_turn>\n'"),
        ["<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
        ["<end_of_turn>"],
    ),
    "phi 3: the conversation is closed by a further token": (
        turns("'<|' + m.role + '|>\n' + m.content + '<|end|>\n'") + "<|endoftext|>",
        ["<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"],
        "<|end|>",
        ["<|end|>"],
    ),
    "cohere: a run of tokens": (
        by_role(
            "'<|START|><|USER|>' + m.content + '<|END|>'",
            "'<|START|><|BOT|><|START_RESPONSE|>' + m.content + '<|END_RESPONSE|><|END|>'",
        ),
        ["<|START|>", "<|END|>", "<|USER|>", "<|BOT|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"],
        "<|END_RESPONSE|><|END|>",
        ["<|END_RESPONSE|>", "<|END|>"],
    ),
    "deepseek": (
        by_role("'<|User|>' + m.content", "'<|Assistant|>' + m.content + '<|eos|>'"),
        ["<|User|>", "<|Assistant|>", "<|eos|>"],
        "<|eos|>",
        ["<|eos|>"],
    ),
    "the conversation alone is closed": (
        turns("m.role + ': ' + m.content + '\n'") + "</s>",
        ["</s>"],
        "\n</s>",
        ["</s>"],
    ),
    "chatml: a system turn and the next answer's header always": (
        OWN_SYSTEM.format("<|im_start|>system\nBe kind to all.<|im_end|>\n")
        + CHATML
        + "<|im_start|>assistant\n",
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
        ["<|im_end|>"],
    ),
    "llama 3: a system turn and the next answer's header always": (
        "<|bos|>"
        + OWN_SYSTEM.format("<|head|>system<|/head|>\n\nBe kind to all.<|eot_id|>")
        + turns("'<|head|>' + m.role + '<|/head|>\n\n' + m.content + '<|eot_id|>'")
        + "<|head|>assistant<|/head|>\n\n",
        ["<|bos|>", "<|head|>", "<|/head|>", "<|eot_id|>"],
        "<|eot_id|>",
        ["<|eot_id|>"],
    ),
    "cohere: a run of tokens, a system turn and the next header always": (
        "<BOS>"
        + OWN_SYSTEM.format("<|START|><|SYSTEM|># Preamble\nBe kind to all.<|END|>")
        + by_role(
            "'<|START|><|USER|>' + m.content + '<|END|>'",
            "'<|START|><|BOT|><|START_RESPONSE|>' + m.content + '<|END_RESPONSE|><|END|>'",
        )
        + "<|START|><|BOT|>",
        [
            "<BOS>",
            "<|START|>",
            "<|END|>",
            "<|SYSTEM|>",
            "<|USER|>",
            "<|BOT|>",
            "<|START_RESPONSE|>",
            "<|END_RESPONSE|>",
        ],
        "<|END_RESPONSE|><|END|>",
        ["<|END_RESPONSE|>", "<|END|>"],
    ),
    "a run of tokens, headers of one tag, a system turn and the next header always": (
        OWN_SYSTEM.format("<|system|>\nBe kind to all.<|end|>\n")
        + by_role(
            "'<|user|>\n' + m.content + '<|end|>\n'",
            "'<|assistant|>\n' + m.content + '<|said|><|end|>\n'",
        )
        + "<|assistant|>\n",
        ["<|system|>", "<|user|>", "<|assistant|>", "<|said|>", "<|end|>"],
        "<|said|><|end|>",
        ["<|said|>", "<|end|>"],
    ),
    "text headers, a system text and the next header always": (
        "Below is an instruction.\n\n"
        + by_role(
            "'### Instruction:\n' + m.content + '\n\n'",
            "'### Response:\n' + m.content + '</s>\n\n'",
        )
        + "### Response:\n",
        ["</s>"],
        "</s>",
        ["</s>"],
    ),
    "plain words": (turns("m.role + ': ' + m.content + '\n### End\n'"), [], "\n### End", []),
}


def rendered(template):
    world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return lambda messages: world.from_string(template).render(messages=messages)


def numbered(tokens) -> Mapping[str, int]:
    return {token: 100 + i for i, token in enumerate(tokens)}


@pytest.mark.parametrize("name", SHAPES)
def test_the_stop_of_a_chat_template(name):
    template, tokens, text, ends = SHAPES[name]
    added = numbered(tokens)
    stop = chat_stop(rendered(template), added)
    assert stop is not None
    assert (stop.text, stop.ids) == (text, tuple(added[token] for token in ends))
    assert stop.strings == tuple(dict.fromkeys([text.strip(), *ends]))


def test_a_folders_tokenizer_knows_its_stop(tokenizer_folders):
    qwen, llama = (Tokenizer(tokenizer_folders[name]) for name in ("qwen", "llama"))
    assert qwen.chat_stop == Stop("<|im_end|>", (qwen.id_of("<|im_end|>"),), ("<|im_end|>",))
    assert llama.chat_stop == Stop(" </s>", (2,), ("</s>",))


def test_a_template_that_closes_no_answer_stops_with_the_next_turn_or_the_end_of_text():
    """GLM's and Nemotron mini's models end with the next request's token, Falcon's with EOS."""
    glm = by_role("'<|user|>\n' + m.content", "'<|assistant|>\n' + m.content")
    added = numbered(["<|user|>", "<|assistant|>", "</s>"])
    stop = chat_stop(rendered(glm), added, "</s>")
    assert stop == Stop("<|user|>", (added["<|user|>"],), ("<|user|>",), written=False)
    lines = by_role("'<|user|>\n' + m.content + '\n<|assistant|>\n'", "m.content + '\n'")
    stop = chat_stop(rendered(lines), added, "</s>")
    assert stop == Stop("\n<|user|>", (added["<|user|>"],), ("<|user|>",), written=False)
    said = turns("m.role + ': ' + m.content + '\n'")
    for words in (said, glm):  # tags that are no tokens of the tokenizer are text
        stop = chat_stop(rendered(words), {"</s>": 2}, "</s>")
        assert stop == Stop("</s>", (2,), ("</s>",), written=False)
    assert chat_stop(rendered(said), {}) is None


def test_what_belongs_to_an_answer_is_its_stop_alone():
    stop = stop_of("<|im_end|>", {"<|im_end|>": 7})
    assert stop == Stop("<|im_end|>", (7,), ("<|im_end|>",))
    assert stop.length_in("<|im_end|>\n<|im_start|>user\n") == len("<|im_end|>")
    assert stop.length_in("\n<|im_end|>") == 0


@pytest.mark.parametrize(
    ("text", "adds", "chat", "expected"),
    [
        ("Hello", True, False, True),
        ("Hello", False, False, False),
        ("<s>Hello", True, False, False),  # it is there
        ("<|im_start|>user", True, True, False),  # the template wrote what it wants
        ("<|im_start|>user", True, False, True),
    ],
)
def test_bos_is_added_once_and_never_to_a_chat(text, adds, chat, expected):
    assert adds_bos_to(text, "<s>", adds_bos=adds, chat=chat) is expected
    assert not adds_bos_to(text, None, adds_bos=False, chat=chat)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fine.", "Fine.</s>"),
        ("Fine.</s>", "Fine.</s>"),
        ("Fine.</s></s>", "Fine.</s>"),
        ("Fine.</s>\n", "Fine.</s>"),
        ("Fine.\n", "Fine.\n</s>"),
        ("</s> is a tag", "</s> is a tag</s>"),
    ],
)
def test_an_answer_has_one_stop(text, expected):
    assert stopped(text, "</s>") == expected
