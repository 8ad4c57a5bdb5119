"""Templates: the characters' roles, written out by hand, and chat templates from the field."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablate.config.schema import Dataset
from ablate.data.pieces import Rendered
from ablate.data.rows import Row, Turn
from ablate.data.templates import render
from ablate.data.tokenizer import Tokenizer
from ablate.errors import UserError
from ablate.roles import Role

LETTERS = {
    Role.SPECIAL: "S",
    Role.BOILERPLATE: "B",
    Role.SYSTEM: "Y",
    Role.INSTRUCTION: "I",
    Role.INPUT: "N",
    Role.COMPLETION: "C",
    Role.TEXT: "T",
}
Make = Callable[..., Path]


def dataset(template: str, **settings: Any) -> Dataset:
    return Dataset(name="d", source="local", path="x", template=template, **settings)  # type: ignore[arg-type]


def row(*turns: tuple[str, str]) -> Row:
    names = {"system": "system", "user": "instruction", "assistant": "completion"}
    return Row(turns=tuple(Turn(r, ((names[r], t),)) for r, t in turns))  # type: ignore[arg-type]


def alpaca(instruction: str, context: str, output: str) -> Row:
    prompt = (("instruction", instruction), *((("input", context),) if context else ()))
    return Row(turns=(Turn("user", prompt), Turn("assistant", (("completion", output),))))


def letters(rendered: Rendered) -> str:
    return "".join(LETTERS[s.role] * (s.end - s.start) for s in rendered.spans)


def of_role(rendered: Rendered, role: Role) -> list[str]:
    runs = itertools.groupby(rendered.spans, key=lambda s: s.role)
    texts = [(each, "".join(rendered.text[s.start : s.end] for s in run)) for each, run in runs]
    return [text for each, text in texts if each == role]


def aligned(*pairs: tuple[str, str]) -> tuple[str, str]:
    """Return a text and its letters from stretches, each with its letter."""
    return "".join(t for t, _ in pairs), "".join(r * len(t) for t, r in pairs)


# Stanford Alpaca, train.py, PROMPT_DICT at commit 761dc5b.
STANFORD_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
STANFORD_NO_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)


def test_alpaca_is_stanfords_text(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(tokenizer_folders["bos"])
    fields = {"instruction": "Name a river.", "input": "in Egypt", "output": "Nile"}
    with_input = render(alpaca(*fields.values()), dataset("alpaca"), tokenizer)
    assert with_input.text == STANFORD_INPUT.format_map(fields) + "Nile</s>"
    without = render(alpaca("Name a river.", "", "Nile"), dataset("alpaca"), tokenizer)
    assert without.text == STANFORD_NO_INPUT.format_map(fields) + "Nile</s>"
    assert with_input.add_bos
    assert without.add_bos


def test_alpaca_roles_by_hand(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(tokenizer_folders["bos"])
    rendered = render(alpaca("Go", "left", "ok"), dataset("alpaca"), tokenizer)
    before, after = STANFORD_INPUT.split("{instruction}")
    middle, end = after.split("{input}")
    expected = aligned(
        (before, "B"), ("Go", "I"), (middle, "B"), ("left", "N"), (end, "B"), ("ok</s>", "C")
    )
    assert (rendered.text, letters(rendered)) == expected


def test_compact_roles_by_hand(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(tokenizer_folders["bos"])
    rendered = render(alpaca("Go", "left", "ok"), dataset("compact"), tokenizer)
    assert (rendered.text, letters(rendered)) == aligned(
        ("Go", "I"), ("\nInput:\n", "B"), ("left", "N"), ("\nAnswer:\n", "B"), ("ok</s>", "C")
    )
    without = render(alpaca("Go", "", "ok"), dataset("compact"), tokenizer)
    assert without.text == "Go\nAnswer:\nok</s>"


def test_alpaca_puts_the_rows_system_text_first(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(tokenizer_folders["bos"])
    turns = row(("system", "Be brief."), ("user", "Go"), ("assistant", "ok"))
    rendered = render(turns, dataset("alpaca"), tokenizer)
    assert rendered.text.startswith("Be brief.\n\nBelow is an instruction")
    assert of_role(rendered, Role.SYSTEM) == ["Be brief."]


def test_plain_and_text_roles_by_hand(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(tokenizer_folders["bos"])
    rendered = render(alpaca("Go", "left", "ok"), dataset("plain"), tokenizer)
    assert (rendered.text, letters(rendered)) == aligned(
        ("Go", "I"), ("\n", "B"), ("left", "N"), ("\n", "B"), ("ok</s>", "C")
    )
    two = row(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    rendered = render(two, dataset("plain"), tokenizer)
    assert (rendered.text, letters(rendered)) == aligned(
        ("a", "I"),
        ("\n", "B"),
        ("b</s>", "C"),
        ("\n", "S"),
        ("c", "I"),
        ("\n", "B"),
        ("d</s>", "C"),
    )
    rendered = render(Row(text="Once upon."), dataset("alpaca"), tokenizer)
    assert (rendered.text, letters(rendered)) == aligned(("Once upon.</s>", "T"))


def test_chat_roles_by_hand(tokenizer_folders: dict[str, Path]) -> None:
    """A template that inserts a system text; its tags and the last newline are special."""
    tokenizer = Tokenizer(tokenizer_folders["bytes"])
    rendered = render(row(("user", "Hi"), ("assistant", "Yo")), dataset("chat"), tokenizer)
    assert (rendered.text, letters(rendered)) == aligned(
        ("<|im_start|>system\n", "S"),
        ("Be kind to all.", "B"),
        ("<|im_end|>\n<|im_start|>user\n", "S"),
        ("Hi", "I"),
        ("<|im_end|>\n<|im_start|>assistant\n", "S"),
        ("Yo<|im_end|>", "C"),
        ("\n", "S"),
    )
    assert not rendered.add_bos


def test_chat_with_the_rows_own_system_text_and_more_turns(
    tokenizer_folders: dict[str, Path],
) -> None:
    tokenizer = Tokenizer(tokenizer_folders["bytes"])
    turns = row(
        ("system", "Hum."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")
    )
    expected = [
        ("<|im_start|>system\n", "S"),
        ("Hum.", "Y"),
        ("<|im_end|>\n<|im_start|>user\n", "S"),
        ("a", "I"),
        ("<|im_end|>\n<|im_start|>assistant\n", "S"),
        ("b<|im_end|>", "C"),
        ("\n<|im_start|>user\n", "S"),
        ("c", "I"),
        ("<|im_end|>\n<|im_start|>assistant\n", "S"),
        ("d<|im_end|>", "C"),
        ("\n", "S"),
    ]
    rendered = render(turns, dataset("chat"), tokenizer)
    assert (rendered.text, letters(rendered)) == aligned(*expected)
    expected[5] = ("b<|im_end|>", "I")  # turns=last: an earlier answer is part of the prompt
    rendered = render(turns, dataset("chat", turns="last"), tokenizer)
    assert (rendered.text, letters(rendered)) == aligned(*expected)


def test_chat_keeps_an_instruction_and_its_input_apart(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(tokenizer_folders["bytes"])
    rendered = render(alpaca("Go", "left", "ok"), dataset("chat"), tokenizer)
    assert of_role(rendered, Role.INSTRUCTION) == ["Go"]
    assert of_role(rendered, Role.INPUT) == ["\nleft"]


def test_words_that_look_like_the_template_are_the_rows_own(
    tokenizer_folders: dict[str, Path],
) -> None:
    tokenizer = Tokenizer(tokenizer_folders["bytes"])
    turns = row(("user", "user"), ("assistant", "assistant\nuser"))
    rendered = render(turns, dataset("chat"), tokenizer)
    assert of_role(rendered, Role.INSTRUCTION) == ["user"]
    assert of_role(rendered, Role.COMPLETION) == ["assistant\nuser<|im_end|>"]
    start = next(s for s in rendered.spans if s.role == Role.INSTRUCTION).start
    assert rendered.text[:start].endswith("<|im_start|>user\n")


def test_a_template_that_strips_white_space(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(tokenizer_folders["llama"])
    turns = row(("system", "Hum."), ("user", " a \n"), ("assistant", "\nb"))
    rendered = render(turns, dataset("chat"), tokenizer)
    assert (rendered.text, letters(rendered)) == aligned(
        ("<s>[INST] <<SYS>>\n", "S"),
        ("Hum.", "Y"),
        ("\n<</SYS>>\n\n", "S"),
        (" a", "I"),  # only the whole first turn, system text included, is stripped
        (" [/INST] ", "S"),
        ("b </s>", "C"),
    )


FIELD: dict[str, tuple[str, tuple[str, ...], list[str], str]] = {
    # name: template, special tokens, boilerplate, what the answer trains on
    "llama-3.1": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{% set said = messages[0]['content'] | trim %}{% set messages = messages[1:] %}"
        "{% else %}{% set said = '' %}{% endif %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}"
        "{{ 'Cutting Knowledge Date: December 2023\n' }}"
        "{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\n\n' + said + '<|eot_id|>' }}"
        "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
        "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}",
        ("<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ["Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024"],
        "Yo<|eot_id|>",
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
        "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
        "{% endfor %}",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        [],
        "Yo<end_of_turn>",
    ),
    "vicuna": (
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
        "{% set messages = messages[1:] %}{% else %}{{ 'A chat between a curious user and an "
        "artificial intelligence assistant.' }}{% endif %}{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ ' USER: ' + m['content'] }}{% else %}"
        "{{ ' ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
        ("<bos>", "</s>"),
        ["A chat between a curious user and an artificial intelligence assistant."],
        "Yo</s>",
    ),
    "tulu": (  # role tags that are plain text
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}",
        ("<bos>", "</s>"),
        [],
        "Yo</s>",
    ),
    "no system turn, text inserted": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}"
        "{% endif %}{% if loop.first %}{{ 'Answer as well as you can.\n' }}{% endif %}"
        "{{ '[' + m['role'] + '] ' + m['content'] + '</s>' }}{% endfor %}",
        ("<bos>", "</s>"),
        ["Answer as well as you can."],
        "Yo</s>",
    ),
    "generation tags": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'A: ' }}{% generation %}"
        "{{ m['content'] + eos_token }}{% endgeneration %}{% else %}"
        "{{ 'Q: ' + m['content'] + '\n' }}{% endif %}{% endfor %}",
        ("<bos>", "</s>"),
        [],
        "Yo</s>",
    ),
}


@pytest.mark.parametrize("name", FIELD)
def test_templates_from_the_field(name: str, make_bytes: Make) -> None:
    template, special, boilerplate, answer = FIELD[name]
    folder = make_bytes(
        *special, bos_token=special[0], eos_token=special[-1], chat_template=template
    )
    turns = row(("user", "Hi there you all"), ("assistant", "Yo"))
    rendered = render(turns, dataset("chat"), Tokenizer(folder))
    assert of_role(rendered, Role.BOILERPLATE) == boilerplate
    assert of_role(rendered, Role.INSTRUCTION) == ["Hi there you all"]
    assert of_role(rendered, Role.COMPLETION) == [answer]


BAD = {
    "{% for m in messages %}{{ m['content'] | upper }}</s>{% endfor %}": "changes the text",
    "{% for m in messages %}{{ m['content'] * 2 }}</s>{% endfor %}": "drops or repeats",
    "{{ messages[-1]['content'] }}</s>": "drops or repeats",
    "{% for m in messages %}{{ m['content'].split('y')[-1] }}</s>{% endfor %}": "drops or repeats",
    "{{ raise_exception('Only music') }}": "Only music",
    "{% for m in messages %}": "line 1 of the chat template: Unexpected end",
    "{{ messages[0].content.__class__.__mro__ }}": "template says",
}


@pytest.mark.parametrize("template", BAD)
def test_a_template_whose_roles_cannot_be_told_is_an_error(template: str, make_bytes: Make) -> None:
    folder = make_bytes("</s>", eos_token="</s>", chat_template=template)
    turns = row(("user", "hay"), ("assistant", "rye bread"))
    with pytest.raises(UserError, match=BAD[template]) as error:
        render(turns, dataset("chat"), Tokenizer(folder))
    assert "\n" not in str(error.value)


def test_what_a_model_lacks_is_an_error(make_bytes: Make, tmp_path: Path) -> None:
    turns = row(("user", "a"), ("assistant", "b"))
    bare = make_bytes("</s>")
    with pytest.raises(UserError, match="has no chat template"):
        render(turns, dataset("chat"), Tokenizer(bare))
    with pytest.raises(UserError, match="names no eos_token"):
        render(turns, dataset("alpaca"), Tokenizer(bare))
    endless = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="no stop token"):
        render(turns, dataset("chat"), Tokenizer(make_bytes("</s>", chat_template=endless)))
    two = row(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    with pytest.raises(UserError, match="holds one exchange"):
        render(two, dataset("alpaca"), Tokenizer(make_bytes("</s>", eos_token="</s>")))
    with pytest.raises(UserError, match=r"model.chat_template=.*no such file"):
        Tokenizer(bare, tmp_path / "nothing.jinja")


def test_a_template_file_overrides_the_folders_own(make_bytes: Make, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{{ m['role'] + '=' + m['content'] + eos_token }}{% endfor %}"
    )
    folder = make_bytes("</s>", eos_token="</s>", chat_template="{{ 'never' }}")
    turns = row(("user", "a"), ("assistant", "b"))
    rendered = render(turns, dataset("chat"), Tokenizer(folder, tmp_path / "own.jinja"))
    assert rendered.text == "user=a</s>assistant=b</s>"


def test_spans_cover_any_text_and_hold_what_the_row_says(
    tokenizer_folders: dict[str, Path],
) -> None:
    rng = np.random.default_rng(3)
    pool = [*"ab user\n\t #:é漢🙂<>|{}'\"\\%", "<|im_end|>", "assistant", "### Input:"]
    tokenizer = Tokenizer(tokenizer_folders["bytes"])

    def words() -> str:
        return "x" + "".join(rng.choice(pool, size=rng.integers(0, 12))) + "y"

    for number in range(150):
        turns = [("user", words()), ("assistant", words())] * int(rng.integers(1, 4))
        turns = [("system", words())] * int(rng.integers(0, 2)) + turns
        template = ("chat", "plain")[number % 2]
        rendered = render(row(*turns), dataset(template), tokenizer)
        edges = [0, *(s.end for s in rendered.spans)]
        assert [s.start for s in rendered.spans] == edges[:-1]
        assert edges[-1] == len(rendered.text)
        for speaker, role in (("user", Role.INSTRUCTION), ("system", Role.SYSTEM)):
            assert of_role(rendered, role) == [t for s, t in turns if s == speaker]
        answers = [t + "<|im_end|>" for s, t in turns if s == "assistant"]
        assert of_role(rendered, Role.COMPLETION) == answers


def test_a_text_template_of_ones_own(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer(tokenizer_folders["bos"])
    file = tmp_path / "mine.yaml"
    forms = ('prompt: "Q: {instruction}\\nA: "', 'prompt_with_input: "{input}. {instruction}? "')
    file.write_text("\n".join(forms))
    rendered = render(alpaca("Go", "", "ok"), dataset(str(file)), tokenizer)
    assert (rendered.text, letters(rendered)) == aligned(
        ("Q: ", "B"), ("Go", "I"), ("\nA: ", "B"), ("ok</s>", "C")
    )
    rendered = render(alpaca("Go", "left", "ok"), dataset(str(file)), tokenizer)
    assert (rendered.text, letters(rendered)) == aligned(
        ("left", "N"), (". ", "B"), ("Go", "I"), ("? ", "B"), ("ok</s>", "C")
    )
    told = row(("system", "Hum."), ("user", "Go"), ("assistant", "ok"))
    rendered = render(told, dataset(str(file)), tokenizer)
    assert rendered.text == "Hum.\n\nQ: Go\nA: ok</s>"
    assert of_role(rendered, Role.SYSTEM) == ["Hum."]


BAD_FILES = {
    "a: b": "must have a text `prompt`",
    "prompt: '{instruction}'\nanswer: x": "answer: not one of",
    "prompt: 'Q'": r"prompt: must have {instruction} once each, has \[\]",
    "prompt: '{instruction} {input}'": "prompt: must have {instruction} once",
    "prompt: '{instruction'": "prompt: ",
    "prompt: '{instruction!r:>12}'": r"has \['instruction!r:>12'\]",
    "prompt: '{instruction:{input}}'": r"has \['instruction:\{input\}'\]",
    "{prompt: '{instruction}', system: '{system!s}'}": r"system: must have \{system\} once each",
    "- a": "must have a text `prompt`",
}


@pytest.mark.parametrize("number", range(len(BAD_FILES)))
def test_a_text_template_that_is_none_is_one_line(
    number: int, tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    text, message = list(BAD_FILES.items())[number]
    file = tmp_path / f"bad_{number}.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        render(alpaca("a", "", "b"), dataset(str(file)), Tokenizer(tokenizer_folders["bos"]))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        render(alpaca("a", "", "b"), dataset("none.yaml"), Tokenizer(tokenizer_folders["bos"]))
    with pytest.raises(UserError, match="Did you mean 'alpaca'"):
        dataset("alpca")
