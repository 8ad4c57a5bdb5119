"""Any JSON value under any key of a row: the row is read, or one line says what is wrong."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ablate.config.schema import Dataset, Splits
from ablate.data.tokenise import tokenise
from ablate.data.tokenizer import Tokenizer
from ablate.errors import UserError
from tests.unit.conftest import byte_level, save
from tests.unit.test_data_chat import END, IM, TOOLS

TEMPLATE = TOOLS.replace("m.role + '\n'", "m.role + (m.name or '') + '\n'")
WHOLE = Splits(train=(0.0, 1.0), validation=(1.0, 1.0), test=(1.0, 1.0))
DEEP, DEEPER = ("[" * n + "]" * n for n in (400, 100_000))
VALUES = [  # as JSON text, as Python reads it
    *("null", "true", "false", "0", "-1", "1.5", "1" + "0" * 400, "1e999", "-Infinity", "NaN"),
    *(
        '""',
        '" "',
        '"user"',
        '"\\ud800"',
        '"{}"',
        '"[1]"',
        '"null"',
        '"{"',
        '"1e9"',
        DEEP,
        DEEPER,
        f'"{DEEP}"',
    ),
    *("7" * 5000, "[" + "7" * 5000 + "]"),
    *("[]", "[null]", '["user"]', "[[1]]", "[{}]", "{}", '{"a": null}', '{"name": 5}'),
    *('[{"type": ["text"]}]', '[{"type": "text", "text": {}}]', '{"\\ud800": "\\ud800"}'),
    '"1' + "0" * 5000 + '"',
    '"[' + "7" * 5000 + ']"',
]
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": {"a": "x"}}}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Hum."}], "weight": 1},
        {"role": "user", "content": "Add.", "train": True},
        {"role": "assistant", "content": "", "reasoning_content": "So.", "tool_calls": [CALL]},
        {"role": "tool", "content": "4", "name": "add", "tool_call_id": "c"},
        {"from": "gpt", "value": "Four.", "thinking": "Why."},
        {"from": "human", "value": "And?"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
    ],
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {"a": "x"}}}],
    "sure": 1,
}
ROWS: dict[str, dict[str, Any]] = {
    "chat": CHAT,
    "alpaca": {"instruction": "a", "input": "b", "output": "c", "system": "d", "sure": 1},
    "prompt_completion": {"prompt": "a", "completion": "b", "system": "c", "sure": 1},
    "text": {"text": "a", "sure": 1},
    "chat, history": {"instruction": "a", "output": "b", "history": [["c", "d"]], "sure": 1},
    "chat, halves": {
        "prompt": [{"role": "user", "content": "a"}],
        "completion": [{"role": "assistant", "content": "b"}],
        "system": "c",
        "tools": [{"name": "add"}],
        "sure": 1,
    },
}


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        yield (*path, key)
        if isinstance(each, dict | list):
            yield from paths_in(each, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """Return what stands at a path."""
    for key in path:
        value = value[key]
    return value


def changed(row: dict[str, Any], path: tuple[Any, ...], text: str) -> str:
    """Return the row as JSON text with the JSON text of a value in one place."""
    row = copy.deepcopy(row)
    at(row, path[:-1])[path[-1]] = "@here@"
    return json.dumps(row).replace('"@here@"', text)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("model")
    return Tokenizer(save(folder, byte_level([], IM, END), eos_token=END, chat_template=TEMPLATE))


def outcome(dataset: Dataset, tokenizer: Tokenizer) -> str:
    """Return how many rows are read, or the error."""
    settings: dict[str, Any] = {"max_length": 4096, "boundary": "offset"}
    try:
        return str(len(tokenise(dataset, "train", tokenizer=tokenizer, **settings)))
    except UserError as error:
        return str(error)


CASES = [(name, path) for name, row in ROWS.items() for path in paths_in(row)]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("name", "path"), CASES, ids=lambda v: str(v).replace(" ", ""))
def test_any_value_is_read_or_refused_in_one_line(
    name: str, path: tuple[Any, ...], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    for text in [json.dumps(at(ROWS[name], path)), *VALUES]:
        file.write_text(changed(ROWS[name], path, text) + "\n")
        template = "chat" if name.startswith("chat") else "alpaca"
        weight = {} if path == ("sure",) and text == "null" else {"weight": "sure"}
        dataset = Dataset(
            name="d",
            source="local",
            path=str(file),
            template=template,
            splits=WHOLE,
            columns=weight,
        )
        told = outcome(dataset, tokenizer)
        assert told.isprintable(), text
        assert told == "1" or text in VALUES
