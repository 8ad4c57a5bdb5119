"""Rows under chat templates: every token's role beside labels made by hand."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from transformers import AutoTokenizer

from ablate.config.schema import Dataset, Loss, Masking, Splits
from ablate.data.rows import load
from ablate.data.targets import row_weights
from ablate.data.templates import render
from ablate.data.tokenise import tokenise
from ablate.data.tokenizer import Tokenizer
from ablate.errors import UserError
from ablate.objective import make_objective
from ablate.paths import conf_dir
from tests.unit.test_data_templates import LETTERS

Make = Callable[..., Path]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REASONING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}"
    "{% endif %}{{ (m.content or '').lstrip('\n') }}{% for c in m.tool_calls or [] %}"
    "{{ '\n<call>' + c.function.name + ' ' + (c.function.arguments | tojson) + '</call>' }}"
    "{% endfor %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen 3 does it: reasoning is cut out of the content, and dropped before the last question.
QWEN_3 = (
    "{% set last = messages | selectattr('role', 'equalto', 'user') | list | length %}"
    "{% set seen = namespace(users=0) %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set why = m.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') "
    "if '</think>' in m.content else '' %}{{ '<|im_start|>assistant\n' }}"
    "{% if seen.users == last %}{{ '<think>\n' + why.strip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{{ said + '<|im_end|>\n' }}{% else %}{% set seen.users = seen.users + (m.role == 'user') %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COHERE = (
    "{% for m in messages %}{% if m['role']=='user' %}{{ '<|USER_TOKEN|>' + m['content'] + "
    "'<|END_OF_TURN_TOKEN|>' }}{% else %}{{ '<|CHATBOT_TOKEN|><|START_RESPONSE|>' + m['content'] + "
    "'<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}"
)
# Closes the conversation with a token of its own, as Phi 3 does.
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}"
    "{{ eos_token }}{% endif %}"
)
# Opens the next answer whether it is asked to or not, as the first Llama 3 template did.
LLAMA_3 = (
    "{% for m in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' "
    "+ m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
MISTRAL = (  # the system text goes into the last request
    "{% if messages[0].role == 'system' %}{% set told = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + (told + '\n\n' if told and loop.revindex == 2 "
    "else '') + m.content + '[/INST]' }}{% else %}"
    "{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
ALL = Splits(train=(0.0, 1.0), validation=(1.0, 1.0), test=(1.0, 1.0))
IM = "<|im_start|>"
END = "<|im_end|>"


def messages(*turns: Any) -> list[dict[str, Any]]:
    return [t if isinstance(t, dict) else {"role": t[0], "content": t[1]} for t in turns]


def rows_in(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> Dataset:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    splits = {"train": (0.0, 1.0), "validation": (1.0, 1.0), "test": (1.0, 1.0)}
    from ablate.config.schema import Splits

    return Dataset(
        name="d",
        source="local",
        path=str(file),
        template="chat",
        splits=Splits(**splits),
        **settings,
    )


def labelled(dataset: Dataset, folder: Path) -> list[list[tuple[str, str]]]:
    """Return each row's stretches of text with the letter of their role."""
    tokenizer = Tokenizer(folder)
    found = []
    for row in load(dataset, "train").rows:
        rendered = render(row, dataset, tokenizer)
        runs = itertools.groupby(rendered.spans, key=lambda s: s.role)
        texts = [(r, "".join(rendered.text[s.start : s.end] for s in run)) for r, run in runs]
        found.append([(text, LETTERS[r]) for r, text in texts])
    return found


SHAPES: dict[str, tuple[str, list[str], list[dict[str, Any]], list[tuple[str, str]]]] = {
    # name: template, special tokens, messages, stretches with their roles
    "a stop that is no special token": (
        CHATML,
        ["<|endoftext|>"],
        messages(("user", "Hi"), ("assistant", "It is."), ("user", "And?"), ("assistant", "Fine.")),
        [
            (f"{IM}user\n", "S"),
            ("Hi", "I"),
            (f"{END}\n{IM}assistant\n", "S"),
            (f"It is.{END}", "C"),
            (f"\n{IM}user\n", "S"),
            ("And?", "I"),
            (f"{END}\n{IM}assistant\n", "S"),
            (f"Fine.{END}", "C"),
            ("\n", "S"),
        ],
    ),
    "a stop of two tokens": (
        COHERE,
        ["<s>", "<|END_OF_TURN_TOKEN|>", "<|END_RESPONSE|>"],
        messages(("user", "Hi"), ("assistant", "It is."), ("user", "And?"), ("assistant", "Fine.")),
        [
            ("<|USER_TOKEN|>", "S"),
            ("Hi", "I"),
            ("<|END_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>", "S"),
            ("It is.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "C"),
            ("<|USER_TOKEN|>", "S"),
            ("And?", "I"),
            ("<|END_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>", "S"),
            ("Fine.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "C"),
        ],
    ),
    "reasoning in a key of its own": (
        REASONING,
        [IM, END],
        messages(
            ("user", "Say"),
            {"role": "assistant", "reasoning_content": "I add.", "content": "Four."},
        ),
        [
            (f"{IM}user\n", "S"),
            ("Say", "I"),
            (f"{END}\n{IM}assistant\n", "S"),
            (f"<think>\nI add.\n</think>\n\nFour.{END}", "C"),
            ("\n", "S"),
        ],
    ),
    "a call and its result": (
        REASONING,
        [IM, END],
        messages(
            ("user", "Say"),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "function": {"name": "add", "arguments": {"a": "x", "b": 2}}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "4"},
            ("assistant", "Four."),
        ),
        [
            (f"{IM}user\n", "S"),
            ("Say", "I"),
            (f"{END}\n{IM}assistant\n", "S"),
            ('\n<call>add {"a": "x", "b": 2}</call>' + END, "C"),
            (f"\n{IM}tool\n", "S"),
            ("4", "N"),
            (f"{END}\n{IM}assistant\n", "S"),
            (f"Four.{END}", "C"),
            ("\n", "S"),
        ],
    ),
    "only newlines are stripped": (
        REASONING,
        [IM, END],
        messages(("user", "Write\n"), ("assistant", "\n    return 3")),
        [
            (f"{IM}user\n", "S"),
            ("Write\n", "I"),
            (f"{END}\n{IM}assistant\n", "S"),
            (f"    return 3{END}", "C"),
            ("\n", "S"),
        ],
    ),
    "reasoning within the answer, dropped from an earlier one": (
        QWEN_3,
        [IM, END],
        messages(
            ("user", "a"),
            ("assistant", "<think>\nfirst\n</think>\n\nb"),
            ("user", "c"),
            ("assistant", "<think>\nsecond\n</think>\n\nd"),
        ),
        [
            (f"{IM}user\n", "S"),
            ("a", "I"),
            (f"{END}\n{IM}assistant\n", "S"),
            (f"b{END}", "C"),
            (f"\n{IM}user\n", "S"),
            ("c", "I"),
            (f"{END}\n{IM}assistant\n", "S"),
            (f"<think>\nsecond\n</think>\n\nd{END}", "C"),
            ("\n", "S"),
        ],
    ),
    "an empty reasoning that the template writes": (
        QWEN_3,
        [IM, END],
        messages(("user", "a"), ("assistant", "b")),
        [
            (f"{IM}user\n", "S"),
            ("a", "I"),
            (f"{END}\n{IM}assistant\n", "S"),
            (f"<think>\n\n</think>\n\nb{END}", "C"),
            ("\n", "S"),
        ],
    ),
    "a conversation closed by a token of its own": (
        PHI_3,
        ["<|end|>", "<|endoftext|>"],
        messages(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
        [
            ("<|user|>\n", "S"),
            ("a", "I"),
            ("<|end|>\n<|assistant|>\n", "S"),
            ("b<|end|>", "C"),
            ("\n<|user|>\n", "S"),
            ("c", "I"),
            ("<|end|>\n<|assistant|>\n", "S"),
            ("d<|end|>", "C"),
            ("\n<|endoftext|>", "S"),
        ],
    ),
    "the next answer opened unasked": (
        LLAMA_3,
        ["<|bos|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        messages(("user", "a"), ("assistant", " b "), ("user", "c"), ("assistant", "d")),
        [
            ("<|bos|><|start_header_id|>user<|end_header_id|>\n\n", "S"),
            ("a", "I"),
            ("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "S"),
            ("b<|eot_id|>", "C"),
            ("<|start_header_id|>user<|end_header_id|>\n\n", "S"),
            ("c", "I"),
            ("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "S"),
            ("d<|eot_id|>", "C"),
            ("<|start_header_id|>assistant<|end_header_id|>\n\n", "S"),
        ],
    ),
    "the system text in the last request": (
        MISTRAL,
        ["<s>", "</s>"],
        messages(
            ("system", "Hum."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")
        ),
        [
            ("<s>[INST] ", "S"),
            ("a", "I"),
            ("[/INST] ", "S"),
            ("b</s>", "C"),
            ("[INST] ", "S"),
            ("Hum.", "Y"),
            ("\n\n", "S"),
            ("c", "I"),
            ("[/INST] ", "S"),
            ("d</s>", "C"),
        ],
    ),
}

ORDERS = (  # at the end of each conversation, before what asks for an answer too
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|turn|><|bot|>' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ 'Do ' + c.function.name + '\n' }}{% endfor %}"
    "{{ '' if m.tool_calls else '<|end|>' }}{% else %}{{ '<|turn|><|' + m.role + '|>' + m.content "
    "+ '<|end|>' }}{% endif %}{% endfor %}{{ '<|turn|><|system|>Say Do to call.<|end|>' }}"
    "{% if add_generation_prompt %}{{ '<|turn|><|bot|>' }}{% endif %}"
)
TWICE = messages(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
GLM = (
    "[gMASK]{% for m in messages %}{{ '<|' + ('observation' if m.role == 'tool' else m.role) "
    "+ '|>\n' + (m.content or '') }}{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name "
    "+ '</call>' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GLM_TOKENS = ["<|user|>", "<|assistant|>", "<|observation|>", "<call>", "</call>", "<|endoftext|>"]
ADDS = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}
SHAPES |= {
    "orders at the end, and calls without a stop": (
        ORDERS,
        ["<|turn|>", "<|bot|>", "<|system|>", "<|user|>", "<|tool|>", "<|end|>"],
        [*messages(("user", "a")), ADDS, *messages(("tool", "b"), ("assistant", "c"))],
        [
            ("<|turn|><|user|>", "S"),
            ("a", "I"),
            ("<|end|><|turn|><|bot|>", "S"),
            ("Do add", "C"),
            ("\n<|turn|><|tool|>", "S"),
            ("b", "N"),
            ("<|end|><|turn|><|bot|>", "S"),
            ("c<|end|>", "C"),
            ("<|turn|><|system|>Say Do to call.<|end|>", "S"),
        ],
    ),
    "answers end with the next request's token": (
        GLM,
        GLM_TOKENS,
        TWICE,
        [
            ("[gMASK]<|user|>\n", "S"),
            ("a", "I"),
            ("<|assistant|>", "S"),
            ("\nb<|user|>", "C"),
            ("\n", "S"),
            ("c", "I"),
            ("<|assistant|>", "S"),
            ("\nd<|user|>", "C"),
        ],
    ),
    "calls end with the result's token": (
        GLM,
        GLM_TOKENS,
        [*messages(("user", "a")), ADDS, *messages(("tool", "b"), ("assistant", "c"))],
        [
            ("[gMASK]<|user|>\n", "S"),
            ("a", "I"),
            ("<|assistant|>", "S"),
            ("\n<call>add</call><|observation|>", "C"),
            ("\n", "S"),
            ("b", "N"),
            ("<|assistant|>", "S"),
            ("\nc<|user|>", "C"),
        ],
    ),
    "a last call ends with the result's token": (
        GLM,
        GLM_TOKENS,
        [*messages(("user", "a")), ADDS],
        [
            ("[gMASK]<|user|>\n", "S"),
            ("a", "I"),
            ("<|assistant|>", "S"),
            ("\n<call>add</call><|observation|>", "C"),
        ],
    ),
    "a newline before the next request's token": (
        "{% for m in messages %}{{ '<|user|>\n' + m.content + '\n<|assistant|>\n' "
        "if m.role == 'user' else m.content + '\n' }}{% endfor %}",
        GLM_TOKENS,
        TWICE,
        [
            ("<|user|>\n", "S"),
            ("a", "I"),
            ("\n<|assistant|>\n", "S"),
            ("b\n<|user|>", "C"),
            ("\n", "S"),
            ("c", "I"),
            ("\n<|assistant|>\n", "S"),
            ("d\n<|user|>", "C"),
        ],
    ),
    "answers end with nothing": (
        "{% for m in messages %}{{ '' if loop.first else '\n' }}{{ 'User: ' if m.role == 'user' "
        "else 'Bot: ' }}{{ m.content }}{% endfor %}{{ '\nBot:' if add_generation_prompt }}",
        ["<|endoftext|>"],
        TWICE,
        [
            ("User: ", "S"),
            ("a", "I"),
            ("\nBot:", "S"),
            (" b", "C"),
            ("\nUser: ", "S"),
            ("c", "I"),
            ("\nBot:", "S"),
            (" d<|endoftext|>", "C"),
        ],
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_templates_by_hand(name: str, make_bytes: Make, tmp_path: Path) -> None:
    template, special, said, expected = SHAPES[name]
    folder = make_bytes(
        *special, bos_token=special[0], eos_token=special[-1], chat_template=template
    )
    assert labelled(rows_in(tmp_path, {"messages": said}), folder) == [expected]


def test_definitions_of_tools_are_system_text(make_bytes: Make, tmp_path: Path) -> None:
    template = (
        "{{ '<|im_start|>system\nBe kind.' }}{% if tools %}{{ '\n# Tools\n' }}{% for t in tools %}"
        "{{ t | tojson + '\n' }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}" + CHATML
    )
    folder = make_bytes(IM, END, eos_token=END, chat_template=template)
    said = messages(("user", "a"), ("assistant", "b"))
    row = {"messages": said, "tools": [{"name": "add", "note": None}]}
    assert labelled(rows_in(tmp_path, row), folder) == [
        [
            (f"{IM}system\n", "S"),
            ("Be kind.", "B"),
            ('\n# Tools\n{"name": "add", "note": null}', "Y"),
            (f"\n{END}\n{IM}user\n", "S"),
            ("a", "I"),
            (f"{END}\n{IM}assistant\n", "S"),
            (f"b{END}", "C"),
            ("\n", "S"),
        ]
    ]
    plain = make_bytes(IM, END, eos_token=END, chat_template=CHATML)
    with pytest.raises(UserError, match="does not show the row's tools"):
        labelled(rows_in(tmp_path, row), plain)


def test_a_key_that_the_template_does_not_show_is_named(make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=CHATML)
    said = messages(("user", "a"), {"role": "assistant", "content": "b", "mood": "kind", "id": "7"})
    asked = rows_in(tmp_path, {"messages": said})
    with pytest.raises(UserError, match=r"message 2: its key 'mood' .*ignore_keys=\[mood\]"):
        labelled(asked, folder)
    asked = rows_in(tmp_path, {"messages": said}, options={"ignore_keys": ["mood"]})
    assert labelled(asked, folder)[0][-2] == (f"b{END}", "C")


@pytest.mark.parametrize(
    ("asked", "answer", "key"),
    [
        ({}, {"reasoning": "why", "reasoning_content": "so"}, "reasoning"),
        ({}, {"thinking": "why", "reasoning": "why"}, "thinking"),
        ({"reasoning_content": "why"}, {}, "reasoning_content"),
        ({"thinking": "why"}, {"thinking": "so"}, "thinking"),
    ],
)
def test_reasoning_that_no_template_shows_is_named(
    asked: dict[str, str], answer: dict[str, str], key: str, make_bytes: Make, tmp_path: Path
) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=REASONING)
    said = [{"role": "user", "content": "a", **asked}]
    said += [{"role": "assistant", "content": "b", **answer}]
    number = 1 if asked else 2
    with pytest.raises(UserError, match=rf"message {number}: its key '{key}' .*=\[{key}\]"):
        labelled(rows_in(tmp_path, {"messages": said}), folder)


def test_reasoning_that_is_empty_under_another_key(make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=REASONING)
    answer = {"role": "assistant", "content": "b", "reasoning_content": "", "reasoning": "why"}
    rows = rows_in(tmp_path, {"messages": messages(("user", "a"), answer)})
    assert ("<think>\nwhy\n</think>\n\nb" + END, "C") in labelled(rows, folder)[0]


def test_a_null_key_is_an_absent_one(make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=REASONING)
    bare = {"messages": messages(("user", "a"), ("assistant", "b"))}
    filled = {
        "messages": [
            {**m, "from": None, "value": None, "tool_calls": None} for m in bare["messages"]
        ]
    }
    assert labelled(rows_in(tmp_path, filled), folder) == labelled(rows_in(tmp_path, bare), folder)


def as_table(file: Path, rows: list[dict[str, Any]]) -> Path:
    table = pa.Table.from_pylist(rows)
    if file.suffix == ".parquet":
        pa.parquet.write_table(table, file)
    else:
        with pa.ipc.new_file(str(file), table.schema) as writer:
            writer.write_table(table)
    return file


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "arrow", "text.parquet"])
def test_nulls_are_left_out_where_columns_fill_them_in(
    kind: str, make_bytes: Make, tmp_path: Path
) -> None:
    """JSON says null by itself; a table's column holds it where another row has the key."""
    call = {"name": "f", "arguments": {"unit": None, "at": {"x": None}}}
    said = messages(("user", "a"), {"role": "assistant", "tool_calls": [{"function": call}]})
    row: dict[str, Any] = {"messages": said, "tools": [{"name": "f", "default": None}]}
    other = json.loads(json.dumps(row).replace("null", '"k"'))
    dataset = rows_in(tmp_path, row, other)
    file = tmp_path / f"rows.{kind}"
    if kind == "json":
        file.write_text(json.dumps([row, other]))
    elif kind != "jsonl":
        for each in (row, other) if kind == "text.parquet" else ():
            each["tools"] = json.dumps(each["tools"])
            each["messages"][1]["tool_calls"] = json.dumps(each["messages"][1]["tool_calls"])
        as_table(file, [row, other])
    folder = make_bytes(IM, END, eos_token=END, chat_template=TOOLS)
    found = labelled(dataclasses.replace(dataset, path=str(file)), folder)
    shown = {"".join(text for text, _ in texts) for texts in found}
    tool, arguments = '{"name": "f", "default": null}', '{"unit": null, "at": {"x": null}}'
    if kind in ("parquet", "arrow"):
        tool, arguments = '{"name": "f"}', '{"at": {}}'
    assert any(f"{tool}{END}" in text and f"<call>f {arguments}" in text for text in shown)
    assert any('"default": "k"' in text and '"at": {"x": "k"}' in text for text in shown)


def test_rows_that_cannot_be_aligned_are_left_out(make_bytes: Make, tmp_path: Path) -> None:
    template = CHATML.replace("m['content']", "m['content'].replace('!!', '!')")
    folder = make_bytes(IM, END, eos_token=END, chat_template=template)
    good, bad = ({"messages": messages(("user", "a"), ("assistant", t))} for t in ("b!", "b!!"))
    found = tokenise(
        rows_in(tmp_path, good, bad, good, bad),
        "train",
        tokenizer=Tokenizer(folder),
        max_length=64,
        boundary="offset",
    )
    assert len(found) == 2
    reason = "the chat template changes the text of a turn, first line 2"
    assert dict(found.dropped) == {reason: 2}
    with pytest.raises(UserError, match=r"line 1: the chat template changes the text of a turn"):
        tokenise(
            rows_in(tmp_path, bad),
            "train",
            tokenizer=Tokenizer(folder),
            max_length=64,
            boundary="offset",
        )


@pytest.mark.parametrize("shown", ["c | trim", "c | string", "c | tojson", "c ~ ''"])
def test_no_answer_is_the_list_of_its_parts(shown: str, make_bytes: Make, tmp_path: Path) -> None:
    """A template that cuts reasoning out of text writes parts as Python or JSON does."""
    said = (
        "{% for m in messages %}{% if m.role == 'assistant' and '</think>' in m.content %}"
        "{% set c = m.content.split('</think>')[-1] %}{% else %}{% set c = m.content %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' }}{{ SHOWN }}{{ '<|im_end|>\n' }}{% endfor %}"
    )
    folder = make_bytes(IM, END, eos_token=END, chat_template=said.replace("SHOWN", shown))
    row = {"messages": messages(("user", "a"), ("assistant", "Sure. <think>b</think>c"))}
    with pytest.raises(UserError, match=r"the chat template (drops|changes)"):
        tokenise(
            rows_in(tmp_path, row),
            "train",
            tokenizer=Tokenizer(folder),
            max_length=512,
            boundary="offset",
        )


TALK = messages(
    ("user", "a"),
    {
        "role": "assistant",
        "reasoning_content": "why",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    },
    ("tool", "4"),
    ("assistant", "b"),
    ("user", "c"),
    ("assistant", "d"),
)
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}" + REASONING
)


def weighed(dataset: Dataset, folder: Path, mode: str, plw: float = 0.0) -> list[tuple[str, float]]:
    """Return the first row's stretches of tokens of one weight, and the weights."""
    tokenizer = Tokenizer(folder)
    found = tokenise(dataset, "train", tokenizer=tokenizer, max_length=512, boundary="offset")
    tree = yaml.safe_load((conf_dir() / "masking" / f"{mode}.yaml").read_text())
    weights = {k: w if w == "plw" else float(w) for k, w in tree.pop("weights").items()}
    objective = make_objective(Masking(name=mode, weights=weights, **tree), plw, 1.0, Loss())
    num_L, den_L = row_weights(found.labels_of(0), objective, row=0, permute=None)
    np.testing.assert_array_equal(num_L, den_L)
    runs = itertools.groupby(zip(found.row(0)[0], num_L, strict=True), key=lambda pair: pair[1])
    return [(tokenizer.decode([i for i, _ in run]), float(weight)) for weight, run in runs]


MODES: dict[str, list[tuple[str, float]]] = {
    "no_thinking": [
        (
            f'{IM}system\n{{"name": "f"}}{END}\n{IM}user\na{END}\n{IM}assistant\n'
            "<think>\nwhy\n</think>\n\n",
            0,
        ),
        ("\n<call>f {}</call>" + END, 1),
        (f"\n{IM}tool\n4{END}\n{IM}assistant\n", 0),
        (f"b{END}", 1),
        (f"\n{IM}user\nc{END}\n{IM}assistant\n", 0),
        (f"d{END}", 1),
        ("\n", 0),
    ],
    "thinking_half": [
        (f'{IM}system\n{{"name": "f"}}{END}\n{IM}user\na{END}\n{IM}assistant\n', 0),
        ("<think>\nwhy\n</think>\n\n", 0.5),
        ("\n<call>f {}</call>" + END, 1),
        (f"\n{IM}tool\n4{END}\n{IM}assistant\n", 0),
        (f"b{END}", 1),
        (f"\n{IM}user\nc{END}\n{IM}assistant\n", 0),
        (f"d{END}", 1),
        ("\n", 0),
    ],
    "no_tools_results": [
        (IM, 0),  # the first token of a row is never a target
        ("system\n", 0.25),
        ('{"name": "f"}', 0),
        (f"{END}\n{IM}user\na{END}\n{IM}assistant\n", 0.25),
        ("<think>\nwhy\n</think>\n\n\n<call>f {}</call>" + END, 1),
        (f"\n{IM}tool\n", 0.25),
        ("4", 0),
        (f"{END}\n{IM}assistant\n", 0.25),
        (f"b{END}", 1),
        (f"\n{IM}user\nc{END}\n{IM}assistant\n", 0.25),
        (f"d{END}", 1),
        ("\n", 0.25),
    ],
    "stop_masked": [
        (f'{IM}system\n{{"name": "f"}}{END}\n{IM}user\na{END}\n{IM}assistant\n', 0),
        ("<think>\nwhy\n</think>\n\n\n<call>f {}</call>", 1),
        (f"{END}\n{IM}tool\n4{END}\n{IM}assistant\n", 0),
        ("b", 1),
        (f"{END}\n{IM}user\nc{END}\n{IM}assistant\n", 0),
        ("d", 1),
        (f"{END}\n", 0),
    ],
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_that_tell_details_apart(mode: str, make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=TOOLS)
    rows = rows_in(tmp_path, {"messages": TALK, "tools": [{"name": "f"}]})
    assert weighed(rows, folder, mode, plw=0.25) == MODES[mode]


def test_the_last_turn_alone(make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=CHATML)
    said = messages(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    found = weighed(rows_in(tmp_path, {"messages": said}), folder, "last_turn")
    assert [text for text, weight in found if weight] == [f"d{END}"]


def test_answers_in_a_row_are_one_each(make_bytes: Make, tmp_path: Path) -> None:
    """Nothing but tags stands between them, and under marks nothing at all."""
    tight = CHATML.replace("<|im_end|>\n", "<|im_end|>")
    marked = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content "
        "+ '<|im_end|>' }}{% else %}{% generation %}{{ '<|im_start|>assistant\n' + m.content "
        "+ '<|im_end|>' }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    headless = (
        "{% for m in messages %}{{ m.content + ('' if m.role == 'user' else '<|im_end|>') }}"
        "{% endfor %}"
    )
    said = messages(("user", "a"), ("assistant", "b"), ("assistant", "c"))
    for template, last in (
        (tight, f"c{END}"),
        (marked, f"{IM}assistant\nc{END}"),
        (headless, f"c{END}"),
    ):
        folder = make_bytes(IM, END, eos_token=END, chat_template=template)
        rows = rows_in(tmp_path, {"messages": said})
        found = weighed(rows, folder, "last_turn")
        assert [text for text, weight in found if weight] == [last]
        (found,) = labelled(dataclasses.replace(rows, turns="last"), folder)
        assert [text for text, letter in found if letter in "CE"] == [last]


def test_the_weight_of_a_message(make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=CHATML)
    bad, half = (
        {"role": "assistant", "content": t, "weight": w} for t, w in (("b", 0), ("d", 0.5))
    )
    rows = rows_in(tmp_path, {"messages": messages(("user", "a"), bad, ("user", "c"), half)})
    found = weighed(rows, folder, "instruction")
    assert [pair for pair in found if pair[1]] == [(f"d{END}", 0.5)]
    bad = {"role": "assistant", "content": "b", "train": False}
    rows = rows_in(tmp_path, {"messages": messages(("user", "a"), bad, ("user", "c"), half)})
    assert weighed(rows, folder, "instruction") == found
    both = {"role": "assistant", "content": "b", "weight": 0, "train": False}
    rows = rows_in(tmp_path, {"messages": messages(("user", "a"), both, ("user", "c"), half)})
    assert weighed(rows, folder, "instruction") == found
    for said in ({"weight": 1, "train": False}, {"weight": 0, "train": True}, {"train": "no"}):
        wrong = rows_in(tmp_path, {"messages": messages(("user", "a"), half | said)})
        with pytest.raises(UserError, match="message 2: train="):
            weighed(wrong, folder, "instruction")
    wrong = rows_in(tmp_path, {"messages": [{"role": "user", "content": "a", "weight": -1}, half]})
    with pytest.raises(UserError, match="message 1: weight=-1: must be"):
        weighed(wrong, folder, "instruction")


def test_the_weight_of_a_row_is_a_column_that_is_named(make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=CHATML)
    half = {"role": "assistant", "content": "d", "weight": 0.5}
    said = messages(("user", "a"), ("assistant", "b"), ("user", "c"), half)
    rows = rows_in(tmp_path, {"messages": said, "trust": "0.5"})
    unread = weighed(rows, folder, "instruction")
    read = weighed(dataclasses.replace(rows, columns={"weight": "trust"}), folder, "instruction")
    assert [w for _, w in unread if w] == [1.0, 0.5]
    assert read == [(text, weight * 0.5) for text, weight in unread]
    for wrong in (None, "much", -1, float("inf")):
        rows = dataclasses.replace(
            rows_in(tmp_path, {"messages": said, "trust": wrong}), columns={"weight": "trust"}
        )
        with pytest.raises(UserError, match=r"line 1: trust=.*: a row's weight must be a number"):
            weighed(rows, folder, "instruction")
    with pytest.raises(UserError, match="no column 'trst'"):
        weighed(dataclasses.replace(rows, columns={"weight": "trst"}), folder, "instruction")


def test_system_text_folds_into_the_first_request(make_bytes: Make, tmp_path: Path) -> None:
    refusing = (
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('no system turn') }}{% endif %}{% endfor %}" + CHATML
    )
    folder = make_bytes(IM, END, eos_token=END, chat_template=refusing)
    said = messages(("system", "Hum."), ("user", "a"), ("assistant", "b"))
    kept = rows_in(tmp_path, {"messages": said})
    with pytest.raises(UserError, match="no system turn"):
        tokenise(kept, "train", tokenizer=Tokenizer(folder), max_length=64, boundary="offset")
    folded = rows_in(tmp_path, {"messages": said}, system="fold")
    assert labelled(folded, folder) == [
        [
            (f"{IM}user\n", "S"),
            ("Hum.", "Y"),
            ("\n\na", "I"),
            (f"{END}\n{IM}assistant\n", "S"),
            (f"b{END}", "C"),
            ("\n", "S"),
        ]
    ]


CALLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + ' ' + (c.function.arguments | tojson) }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
JOINED = CALLS.replace("(c.function.arguments | tojson)", "c.function.arguments")
CALL = {"name": "add", "arguments": {"a": 'one "1"\n'}}
AS_TEXT = {"name": "add", "arguments": json.dumps(CALL["arguments"])}


@pytest.mark.parametrize("template", [CALLS, JOINED], ids=["object", "text"])
@pytest.mark.parametrize("call", [CALL, AS_TEXT], ids=["object", "text"])
def test_arguments_are_written_once(
    template: str, call: dict[str, Any], make_bytes: Make, tmp_path: Path
) -> None:
    """Whichever form a template and a row have, the call is JSON, not JSON within JSON."""
    folder = make_bytes(IM, END, eos_token=END, chat_template=template)
    said = messages(("user", "a"), {"role": "assistant", "tool_calls": [{"function": call}]})
    (found,) = labelled(rows_in(tmp_path, {"messages": said}), folder)
    text = "".join(piece for piece, letter in found if letter in "CKE")
    assert text == "add " + json.dumps(CALL["arguments"]) + END


WRITTEN = {  # arguments: how they stand under a template that writes them as JSON
    "{}": "{}",
    "null": "null",
    "[1, 2]": "[1, 2]",
    '{"a":1}': '{"a": 1}',
    "[" * 400 + "]" * 400: json.dumps("[" * 400 + "]" * 400),
    "add one": '"add one"',
    'say "one"': json.dumps('say "one"'),
}


@pytest.mark.parametrize("text", WRITTEN, ids=lambda text: text[:12])
def test_json_text_of_arguments_is_what_it_holds(
    text: str, make_bytes: Make, tmp_path: Path
) -> None:
    """The same call is the same text, whether its arguments hold any text or not."""
    folder = make_bytes(IM, END, eos_token=END, chat_template=CALLS)
    call = {"name": "add", "arguments": text}
    said = messages(("user", "a"), {"role": "assistant", "tool_calls": [{"function": call}]})
    (found,) = labelled(rows_in(tmp_path, {"messages": said}), folder)
    assert ("".join(piece for piece, _ in found)).endswith(f"add {WRITTEN[text]}{END}\n")


# Names the tool again where its result stands, as gpt-oss does.
NAMED_AGAIN = (
    "{% set last = namespace(name='') %}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>' + last.name + ' to assistant\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "{% set last.name = call.name %}{{ '<|im_start|>assistant to ' + call.name + '\n' "
    "+ (call.arguments | tojson) + '<|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)


@pytest.mark.parametrize("arguments", [{}, {"a": 1}, {"a": None}, {"a": "x"}, {"a": ["x", 1]}])
def test_a_call_without_text_whose_name_is_said_again(
    arguments: dict[str, Any], make_bytes: Make, tmp_path: Path
) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=NAMED_AGAIN)
    call = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
    }
    said = messages(("user", "a"), call, ("tool", "4"), ("assistant", "b"))
    assert labelled(rows_in(tmp_path, {"messages": said}), folder) == [
        [
            (f"{IM}user\n", "S"),
            ("a", "I"),
            (f"{END}\n{IM}assistant", "S"),
            (f" to f\n{json.dumps(arguments)}{END}", "C"),
            (f"\n{IM}f to assistant\n", "S"),
            ("4", "N"),
            (f"{END}\n{IM}assistant", "S"),
            (f"\nb{END}", "C"),
            ("\n", "S"),
        ]
    ]


DEVELOPER = CHATML.replace(
    "'<|im_start|>' + m['role']", "'<|im_start|>' + {'developer': 'dev'}.get(m.role, m.role)"
)


@pytest.mark.parametrize(("template", "name"), [(CHATML, "system"), (DEVELOPER, "dev")])
def test_developers_where_the_template_has_that_role(
    template: str, name: str, make_bytes: Make, tmp_path: Path
) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=template)
    rows = rows_in(
        tmp_path, {"messages": messages(("developer", "Hum."), ("user", "a"), ("assistant", "b"))}
    )
    assert labelled(rows, folder)[0][:2] == [(f"{IM}{name}\n", "S"), ("Hum.", "Y")]


def test_system_texts_where_the_template_shows_them(make_bytes: Make, tmp_path: Path) -> None:
    said = messages(
        ("system", "s"), ("system", "t"), ("user", "a"), ("system", "u"), ("assistant", "b"),
        ("system", "v"), ("user", "c"), ("assistant", "d"),
    )  # fmt: skip
    folder = make_bytes(IM, END, eos_token=END, chat_template=CHATML)
    heads = {"system": "Y", "user": "I"}
    expected: list[tuple[str, str]] = []
    for message in said[:-1]:
        head, text = f"{IM}{message['role']}\n", message["content"]
        if message["role"] != "assistant":
            expected += [(head, "S"), (text, heads[message["role"]]), (f"{END}\n", "S")]
        else:
            expected += [(head, "S"), (f"{text}{END}", "C"), ("\n", "S")]
    expected += [(f"{IM}assistant\n", "S"), (f"d{END}", "C"), ("\n", "S")]
    runs = itertools.groupby(expected, key=lambda pair: pair[1])
    merged = [("".join(text for text, _ in run), letter) for letter, run in runs]
    assert labelled(rows_in(tmp_path, {"messages": said}), folder) == [merged]
    once = (
        CHATML.replace("{% for m", "{% for m", 1)
        .replace(
            "{{ '<|im_start|>'", "{% if m.role != 'system' or loop.first %}{{ '<|im_start|>'", 1
        )
        .replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
    )
    folder = make_bytes(IM, END, eos_token=END, chat_template=once)
    with pytest.raises(UserError, match="drops or repeats a turn's system"):
        labelled(rows_in(tmp_path, {"messages": said}), folder)
    folded = rows_in(tmp_path, {"messages": [*said[:3], *said[4:]]}, system="fold")
    (found,) = labelled(folded, folder)
    assert [text for text, letter in found if letter == "Y"] == ["s\n\nt", "v"]
    folded = rows_in(tmp_path, {"messages": [said[2], *said[3:5]]}, system="fold")
    with pytest.raises(UserError, match="no request follows its last system message"):
        tokenise(folded, "train", tokenizer=Tokenizer(folder), max_length=64, boundary="offset")


# Reads the switch of reasoning in the system text, and leaves it out, as SmolLM 3 does.
SWITCHED = (
    "{% set told = messages[0].content if messages[0].role == 'system' else '' %}"
    "{{ '<|im_start|>system\nReasoning: ' + ('off' if '/no_think' in told else 'on') + '\n' }}"
    "{% set told = told.replace('/no_think', '').strip() %}"
    "{{ told or 'You are very kind to all.' }}{{ '<|im_end|>\n' }}"
    "{% for m in messages if m.role != 'system' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("told", ["/no_think", " /no_think\n", "Hum. /no_think", "/no_think Hum."])
def test_system_text_that_is_a_switch(told: str, make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=SWITCHED)
    said = messages(("system", told), ("user", "a"), ("assistant", "b"))
    (found,) = labelled(rows_in(tmp_path, {"messages": said}), folder)
    hums = "Hum." in told
    letters = {letter: text for text, letter in found[:-1]}
    assert "".join(text for text, _ in found) == (
        f"{IM}system\nReasoning: off\n{'Hum.' if hums else 'You are very kind to all.'}{END}\n"
        f"{IM}user\na{END}\n{IM}assistant\nb{END}\n"
    )
    assert letters["I"] == "a"
    assert letters["C"] == f"b{END}"
    assert letters.get("Y") == ("Hum." if hums else None)


def test_sharegpt_calls_and_results(make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=CALLS)
    shared = [
        {"from": "system", "value": "Hum."},
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "4"},
        {"from": "gpt", "value": "Four."},
    ]
    ours = messages(
        ("developer", "Hum."),
        ("user", [{"type": "text", "text": "a"}]),
        {"role": "assistant", "content": None, "tool_calls": json.dumps([{"function": CALL}])},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ("assistant", "Four."),
    )
    theirs = labelled(rows_in(tmp_path, {"messages": shared}), folder)
    assert labelled(rows_in(tmp_path, {"messages": ours}), folder) == theirs
    broken = [*shared[:2], {"from": "function_call", "value": "add(1)"}, shared[-1]]
    with pytest.raises(UserError, match="message 3: function_call is text, but no JSON"):
        labelled(rows_in(tmp_path, {"messages": broken}), folder)


def test_a_row_may_end_in_a_call_but_not_in_a_request(make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=CALLS)
    said = messages(("user", "a"), {"role": "assistant", "tool_calls": [{"function": CALL}]})
    assert labelled(rows_in(tmp_path, {"messages": said}), folder)
    with pytest.raises(UserError, match="its last message is not the assistant's"):
        labelled(rows_in(tmp_path, {"messages": [*said, *messages(("user", "b"))]}), folder)


def test_assistants_first_or_in_a_row(make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=CALLS)
    said = messages(("assistant", "x"), ("user", "a"), ("assistant", "b"), ("assistant", "c"))
    (found,) = labelled(rows_in(tmp_path, {"messages": said}), folder)
    answers = [text for text, letter in found if letter == "C"]
    assert [text.removesuffix(END) for text in answers] == ["x", "b", "c"]


def test_the_template_for_tools_is_used_with_tools(make_bytes: Make, tmp_path: Path) -> None:
    """As transformers: the one named tool_use, where the row has tools."""
    named = [
        {"name": "default", "template": CHATML},
        {"name": "tool_use", "template": "{{ 'Call: ' + (tools | tojson) }}" + CHATML},
    ]
    tokenizer = Tokenizer(make_bytes(IM, END, eos_token=END, chat_template=named))
    said = messages(("user", "a"), ("assistant", "b"))
    assert tokenizer.chat(said).startswith(IM)
    assert tokenizer.chat(said, tools=[{"name": "add"}]).startswith('Call: [{"name": "add"}]')


NEEDS_TOOLS = (
    "{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}" + CALLS
)


def test_a_template_that_needs_tools_is_shown_rows_that_have_them(
    make_bytes: Make, tmp_path: Path
) -> None:
    folder = make_bytes(IM, END, eos_token=END, chat_template=NEEDS_TOOLS)
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": CALL}]}
    said = [*messages(("user", "a")), called, *messages(("tool", "4"), ("assistant", "b"))]
    row = {"messages": said, "tools": [{"name": "add"}]}
    (found,) = labelled(rows_in(tmp_path, row), folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    text = "".join(piece for piece, _ in found)
    assert text == theirs.apply_chat_template(said, tools=row["tools"], tokenize=False)
    call = "add " + json.dumps(CALL["arguments"]) + END
    assert [piece for piece, letter in found if letter == "C"] == [call, f"b{END}"]
    assert ('{"name": "add"}', "Y") in found
    with pytest.raises(UserError, match="line 1: the chat template needs tools"):
        tokenise(
            rows_in(tmp_path, {"messages": messages(("user", "a"), ("assistant", "b"))}),
            "train",
            tokenizer=Tokenizer(folder),
            max_length=64,
            boundary="offset",
        )
