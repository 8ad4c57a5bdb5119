"""Sources and rows: every format and place gives the same rows; bad input gives one line."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ablate.config.schema import Dataset, Splits
from ablate.data import rows as module
from ablate.data.rows import Row, Turn, load, load_rows
from ablate.errors import UserError
from ablate.micro import instructions

WHOLE = Splits(train=(0.0, 1.0), validation=(1.0, 1.0), test=(1.0, 1.0))
RECORDS = [
    {"instruction": f"Double {i}.", "input": "" if i % 2 else f"n={i}", "output": f"{2 * i}"}
    for i in range(20)
]


def dataset(path: Path, **settings: Any) -> Dataset:
    settings = {"splits": WHOLE} | settings
    return Dataset(name="d", source="local", path=str(path), **settings)


def lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def make_files(folder: Path) -> dict[str, Path]:
    import csv

    import datasets
    import pyarrow as pa
    import pyarrow.parquet

    (folder / "json").mkdir()
    table = pa.Table.from_pylist(RECORDS)
    pa.parquet.write_table(table, folder / "rows.parquet")
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as w,
    ):
        w.write_table(table)
    (folder / "rows.json").write_text(json.dumps(RECORDS))
    with (folder / "rows.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["instruction", "input", "output"])
        writer.writeheader()
        writer.writerows(RECORDS)
    lines(folder / "lines.json", RECORDS)
    lines(folder / "json" / "train.jsonl", RECORDS)
    kept = datasets.Dataset.from_list(RECORDS)
    kept.save_to_disk(str(folder / "saved"), num_shards=2)
    datasets.DatasetDict({"train": kept}).save_to_disk(str(folder / "saved_dict"))
    names = ("rows.parquet", "rows.arrow", "rows.json", "rows.csv", "lines.json", "json", "saved")
    return {name: folder / name for name in (*names, "saved_dict")}


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_every_kind_of_file_and_folder_holds_the_same_rows(tmp_path: Path) -> None:
    expected = [
        (
            (
                Turn(
                    "user",
                    (("instruction", r["instruction"]),)
                    + ((("input", r["input"]),) if r["input"] else ()),
                ),
                Turn("assistant", (("completion", r["output"]),)),
            ),
            None,
        )
        for r in RECORDS
    ]
    for name, path in make_files(tmp_path).items():
        found = [(row.turns, row.text) for row in load_rows(dataset(path), "train")]
        assert sorted(map(repr, found)) == sorted(map(repr, expected)), name


def test_formats_and_column_names(tmp_path: Path) -> None:
    turn = Turn("user", (("instruction", "Hi"),))
    answer = Turn("assistant", (("completion", "Yo"),))
    system = Turn("system", (("system", "Be brief."),))
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
    cases: list[tuple[dict[str, Any], dict[str, str], Row]] = [
        ({"instruction": "Hi", "output": "Yo"}, {}, Row(turns=(turn, answer))),
        ({"prompt": "Hi", "completion": "Yo"}, {}, Row(turns=(turn, answer))),
        (
            {"ask": "Hi", "reply": "Yo"},
            {"prompt": "ask", "completion": "reply"},
            Row(turns=(turn, answer)),
        ),
        (
            {"instruction": "Hi", "output": "Yo", "system": "Be brief."},
            {},
            Row(turns=(system, turn, answer)),
        ),
        ({"messages": chat}, {}, Row(turns=(turn, answer))),
        ({"conversations": shared}, {"messages": "conversations"}, Row(turns=(turn, answer))),
        ({"messages": ["Hi", "Yo"]}, {}, Row(turns=(turn, answer))),
        ({"conversations": ["Hi", "Yo"] * 2}, {}, Row(turns=(turn, answer) * 2)),
        ({"text": "Once."}, {}, Row(text="Once.")),
        ({"body": "Once."}, {"text": "body"}, Row(text="Once.")),
    ]
    for record, columns, expected in cases:
        path = lines(tmp_path / "one.jsonl", [record])
        (found,) = load_rows(dataset(path, columns=columns), "train")
        assert (found.turns, found.text) == (expected.turns, expected.text)


def test_a_row_is_in_one_part_only_and_copies_stay_together(tmp_path: Path) -> None:
    records = RECORDS[:3] * 7 + RECORDS[3:12]  # three rows seven times
    thirds = Splits(train=(0.0, 0.6), validation=(0.6, 0.9), test=(0.9, 1.0))
    path = lines(tmp_path / "d.jsonl", records)
    parts = {p: load_rows(dataset(path, splits=thirds), p) for p in ("train", "validation", "test")}
    contents = {p: {module.row_hash(r) for r in found} for p, found in parts.items()}
    assert sum(map(len, parts.values())) == 30
    assert sum(map(len, contents.values())) == 12
    # a border at 18 or 27 that falls among seven copies moves behind them
    assert 18 <= len(parts["train"]) <= 24
    # the order in the file changes nothing
    shuffled = lines(tmp_path / "e.jsonl", records[::-1])
    again = load_rows(dataset(shuffled, splits=thirds), "train")
    assert [r.turns for r in again] == [r.turns for r in parts["train"]]


def test_max_rows_is_a_beginning_of_the_part(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", RECORDS)
    whole = load_rows(dataset(path), "train")
    assert load_rows(dataset(path, max_rows=7), "train") == whole[:7]


def test_prompt_inversion_makes_the_output_the_input(tmp_path: Path) -> None:
    record = {"instruction": "Name a river.", "input": "in Egypt", "output": "The Nile."}
    path = lines(tmp_path / "d.jsonl", [record])
    (row,) = load_rows(dataset(path, invert_prompt=True), "train")
    prompt, answer = row.turns
    assert dict(prompt.parts) == {"instruction": module.ASKING, "input": "The Nile."}
    assert answer.parts == (("completion", "Name a river."),)


def test_shuffled_prompts_are_another_rows_prompt_and_every_row_keeps_its_answer(
    tmp_path: Path,
) -> None:
    path = lines(tmp_path / "d.jsonl", RECORDS)
    plain = load_rows(dataset(path), "train")
    mixed = load_rows(dataset(path, shuffle_prompts=True), "train")
    assert [r.turns[-1] for r in mixed] == [r.turns[-1] for r in plain]
    own = [a.turns[0] == b.turns[0] for a, b in zip(mixed, plain, strict=True)]
    assert not any(own)
    assert {r.turns[0] for r in mixed} == {r.turns[0] for r in plain}
    assert mixed == load_rows(dataset(path, shuffle_prompts=True), "train")


def test_shuffling_leaves_the_held_out_parts_alone(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", RECORDS)
    halves = Splits(train=(0.0, 0.5), validation=(0.5, 0.5), test=(0.5, 1.0))
    found = load_rows(dataset(path, splits=halves, shuffle_prompts=True), "test")
    assert found == load_rows(dataset(path, splits=halves), "test")


def test_empty_completions_are_an_error_dropped_or_kept(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", [*RECORDS, {"instruction": "x", "output": " "}])
    with pytest.raises(UserError, match=r"line 21: has no completion"):
        load(dataset(path), "train")
    found = load(dataset(path, on_bad_row="drop"), "train")
    assert (len(found.rows), found.dropped) == (20, {"no completion": 1})
    kept = load(dataset(path, options={"empty_completion": "keep"}), "train")
    assert (len(kept.rows), kept.dropped) == (21, {})


def test_hub_rows_come_with_their_whole_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def fake(path: str, subset: str | None, **more: Any) -> list[dict[str, str]]:
        asked.append((path, subset, more))
        return RECORDS

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr("ablate.hub.unreachable", lambda: "")
    hub = Dataset(
        name="h", source="hub", path="o/n", subset="s", data_dir="d", revision="r", split="x",
        splits=WHOLE,
    )  # fmt: skip
    assert len(load_rows(hub, "train")) == 20
    assert asked == [("o/n", "s", {"data_dir": "d", "revision": "r", "split": "x"})]


def test_a_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'o/n'\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr("ablate.hub.unreachable", lambda: "")
    with pytest.raises(UserError, match=r"dataset.path=o/n: .*Couldn't reach") as error:
        load_rows(Dataset(name="h", source="hub", path="o/n"), "train")
    assert "\n" not in str(error.value)


def test_micro_rows_have_parts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def made(path: str, part: str, options: Any) -> list[dict[str, str]]:
        asked.append((path, part, dict(options)))
        return RECORDS

    monkeypatch.setattr(instructions, "rows", made)
    micro = Dataset(name="m", source="micro", path="micro", options={"rg": 2.0})
    rows = load_rows(dataclasses.replace(micro, max_rows=3), "validation")
    assert asked == [("micro", "validation", {"rg": 2.0})]
    assert [r.turns[-1].parts[0][1] for r in rows] == ["0", "2", "4"]  # in the generator's order


def chat(*turns: tuple[str, Any]) -> str:
    return json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]})


GOOD = '{"instruction": "a", "output": "b"}\n'
BAD: list[tuple[str, str, dict[str, Any], str]] = [
    ("d.txt", GOOD, {}, r"dataset.path=d.txt: not one of .*\.jsonl"),
    ("d.jsonl", "", {}, "holds no rows"),
    ("d.csv", "", {}, "holds no rows"),
    ("d.json", "[]", {}, "holds no rows"),
    ("d.jsonl", GOOD + '{"instruction": \n', {}, "line 2: broken JSON"),
    ("d.json", '[{"a": 1},\n oops]', {}, "line 2: broken JSON"),
    ("d.jsonl", GOOD + "[1, 2]\n", {}, "line 2: must be an object, is a list"),
    ("d.csv", "instruction,output\na,b\nc\n", {}, "line 3: must have 2 columns"),
    ("d.parquet", "no table", {}, "not a parquet file"),
    ("d.arrow", "no table", {}, "not an arrow file"),
    (
        "d.jsonl",
        '{"instructoin": "a", "output": "b"}',
        {},
        "no column 'instruction'.*'instructoin'",
    ),
    ("d.jsonl", GOOD, {"format": "messages"}, "no column 'messages'"),
    ("d.jsonl", GOOD, {"columns": {"output": "answer"}}, "no column 'answer'"),
    ("d.jsonl", GOOD, {"columns": {"outptu": "b"}}, "dataset.columns=outptu.*'output'"),
    ("d.jsonl", '{"instruction": "a", "output": 5}', {}, "line 1: output must be text, is int"),
    ("d.jsonl", GOOD + '{"instruction": "a"}', {}, "line 2: output is missing"),
    ("d.jsonl", '{"instruction": " ", "output": "b"}', {}, "neither an instruction nor an input"),
    ("d.jsonl", '{"prompt": "", "completion": "b"}', {}, "empty prompt"),
    ("d.jsonl", '{"text": " "}', {}, "empty text"),
    ("d.jsonl", chat(("user", "a"), ("asistant", "b")), {}, "role 'asistant'.*'assistant'"),
    ("d.jsonl", chat(("user", "a")), {}, "has no completion"),
    ("d.jsonl", chat(("user", "a"), ("assistant", "")), {}, "has no completion"),
    ("d.jsonl", chat(("assistant", "b")), {}, "needs a user's message"),
    ("d.jsonl", chat(("user", 3), ("assistant", "c")), {}, "content must be text, is int"),
    (
        "d.jsonl",
        chat(("user", "a"), ("assistant", [{"type": "text", "text": {"value": "b"}}])),
        {},
        "message 2: the text of a part must be text, is dict",
    ),
    ("d.jsonl", chat(("user", [{"type": "text"}]), ("assistant", "b")), {}, "is NoneType"),
    ("d.jsonl", '{"messages": "hello"}', {}, "messages is text, but no JSON"),
    ("d.jsonl", '{"messages": "{}"}', {}, "must be a list of messages"),
    ("d.jsonl", '{"prompt": [], "completion": "b"}', {}, "prompt: prompt must be a list of"),
    (
        "d.jsonl",
        '{"prompt": [{"role": "user", "content": 5}], "completion": "b"}',
        {},
        "prompt: message 1: content must be text, is int",
    ),
    ("d.jsonl", '{"prompt": "a", "completion": [{"role": "user", "content": "b"}]}', {}, "has no"),
    (
        "d.jsonl",
        '{"instruction": "a", "output": "b", "history": [["c"]]}',
        {},
        r"history: exchange 1 must be a request and its answer.*ignore_keys=\[history\]",
    ),
    ("d.jsonl", '{"messages": []}', {}, "must be a list of messages"),
    ("d.jsonl", '{"conversations": ["a", "b", "c"]}', {}, "has no completion"),
    ("d.jsonl", '{"messages": ["a", " "]}', {}, "has no completion"),
    ("d.jsonl", '{"messages": [" ", "b"]}', {}, "message 1: the user says nothing"),
    ("d.jsonl", '{"messages": ["a", 5]}', {}, "message 1 must be an object, or all .* is str"),
    (
        "d.jsonl",
        '{"messages": [{"role": "user", "content": "a"}, "b"]}',
        {},
        "message 2 must be an object, or all of them text, is str",
    ),
    ("d.jsonl", GOOD, {"options": {"empty": "drop"}}, "dataset.options=empty: not one of"),
    ("d.jsonl", GOOD, {"options": {"empty_completion": "kept"}}, "Did you mean 'keep'"),
    (
        "d.jsonl",
        '{"text": "a"}\n{"text": "b"}',
        {"shuffle_prompts": True},
        "rows that have prompts",
    ),
    ("d.jsonl", '{"text": "a"}', {"invert_prompt": True}, "line 1: only one exchange"),
]


@pytest.mark.parametrize(("name", "content", "settings", "message"), BAD)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str,
    settings: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_rows(dataset(Path(name), **settings), "train")
    assert "\n" not in str(error.value)


def test_bad_places_are_one_line(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", RECORDS)
    with pytest.raises(UserError, match=r"no such file or folder. Did you mean 'rows.jsonl'"):
        load_rows(dataset(tmp_path / "row.jsonl"), "train")
    with pytest.raises(UserError, match=r"dataset.split=train: not one of rows"):
        load_rows(dataset(tmp_path), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="a folder without"):
        load_rows(dataset(tmp_path / "empty"), "train")
    with pytest.raises(UserError, match=r"part=dev: not one of"):
        load_rows(dataset(tmp_path / "rows.jsonl"), "dev")
    (tmp_path / "latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_rows(dataset(tmp_path / "latin.jsonl"), "train")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(UserError, match="not a saved `datasets` folder"):
        load_rows(dataset(tmp_path / "saved"), "train")


USUAL: list[tuple[str, dict[str, str]]] = [
    ("question,answer", {"instruction": "a", "completion": "b"}),
    ("prompt,response", {"instruction": "a", "completion": "b"}),
    ("query,output", {"instruction": "a", "completion": "b"}),
    ("instruction,response", {"instruction": "a", "completion": "b"}),
    ("instruction,response,context", {"instruction": "a", "completion": "b", "input": "c"}),
]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(("header", "parts"), USUAL)
def test_usual_names_and_any_separator(
    tmp_path: Path, header: str, parts: dict[str, str], separator: str
) -> None:
    path = tmp_path / "rows.csv"
    names = header.split(",")
    records = [names, list("abc")[: len(names)], ["a, b; c", "d|e", "f\tg"][: len(names)]]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(records)
    (first, second) = load_rows(dataset(path), "train")
    assert {part: text for turn in first.turns for part, text in turn.parts} == parts
    assert dict(second.turns[-1].parts) == {"completion": "d|e"}


def test_names_that_may_mean_several_things_are_asked_for(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", [{"question": "a", "answer": "b", "solution": "c"}])
    with pytest.raises(UserError, match="question and answer or question and solution; name"):
        load_rows(dataset(path), "train")
    columns = {"instruction": "question", "output": "solution"}
    (row,) = load_rows(dataset(path, columns=columns), "train")
    assert dict(row.turns[-1].parts) == {"completion": "c"}


def test_columns_of_no_format_are_named_with_the_setting(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", [{"q": "a", "a": "b"}])
    with pytest.raises(UserError, match=r"columns a, q are none of .*columns.instruction=COLUMN"):
        load_rows(dataset(path), "train")


def test_bad_rows_are_an_error_or_left_out(tmp_path: Path) -> None:
    bad = [{"instruction": 5, "output": "b"}, {"instruction": "a", "output": None}]
    path = lines(tmp_path / "d.jsonl", [*RECORDS, *bad, {"instruction": "x", "output": " "}])
    with pytest.raises(UserError, match=r"line 21: instruction must be text.*on_bad_row=drop"):
        load(dataset(path), "train")
    found = load(dataset(path, on_bad_row="drop"), "train")
    assert len(found.rows) == 20
    assert found.dropped == {
        "instruction must be text, is int, first line 21": 1,
        "output is missing, first line 22": 1,
        "no completion": 1,
    }


TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
ENDS = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]


def test_messages_as_json_text_and_prompts_of_messages(tmp_path: Path) -> None:
    """As in a CSV file, and as TRL's conversational prompt and completion, whose loss is the
    completion's."""
    path = tmp_path / "d.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps([*TALK, *ENDS])]])
    (as_text,) = load_rows(dataset(path), "train")
    path = lines(tmp_path / "d.jsonl", [{"messages": [*TALK, *ENDS]}])
    (plain,) = load_rows(dataset(path), "train")
    assert as_text.turns == plain.turns
    halves = [
        {"prompt": [*TALK, ENDS[0]], "completion": ENDS[1:]},
        {"prompt": [*TALK, ENDS[0]], "completion": "d"},
    ]
    for row in load_rows(dataset(lines(tmp_path / "e.jsonl", halves)), "train"):
        assert [t.weight for t in row.turns] == [1, 0, 1, 1]
        assert [(t.role, t.parts) for t in row.turns] == [(t.role, t.parts) for t in plain.turns]
    more = {"prompt": TALK[:1], "completion": "b", "tools": [{"name": "f"}], "system": "s"}
    (row,) = load_rows(dataset(lines(tmp_path / "f.jsonl", [more])), "train")
    assert [t.role for t in row.turns] == ["system", "user", "assistant"]
    assert row.tools == ({"name": "f"},)


def test_the_history_of_alpaca_rows_is_earlier_exchanges(tmp_path: Path) -> None:
    row = {"instruction": "c", "output": "d", "system": "s"}
    (row_talk,) = load_rows(dataset(lines(tmp_path / "d.jsonl", [{"messages": TALK}])), "train")
    for number, history in enumerate(([["a", "b"]], '[["a", "b"]]')):
        path = lines(tmp_path / f"{number}.jsonl", [row | {"history": history}])
        (found,) = load_rows(dataset(path), "train")
        assert [t.role for t in found.turns] == ["system", *["user", "assistant"] * 2]
        assert found.turns[1:3] == row_talk.turns
        (bare,) = load_rows(dataset(path, options={"ignore_keys": ["history"]}), "train")
        assert [t.role for t in bare.turns] == ["system", "user", "assistant"]
    for other in ([], None, "", "a school subject", 5):
        path = lines(tmp_path / "e.jsonl", [row | {"history": other}])
        assert load_rows(dataset(path), "train")[0].turns == bare.turns


@pytest.mark.parametrize("form", ["jsonl", "csv", "text"])
def test_rows_of_every_format_have_weights(form: str, tmp_path: Path) -> None:
    if form == "csv":
        path = tmp_path / "d.csv"
        path.write_text("question;answer;sure\na;b;0.25\n")
    else:
        fields = {"text": "a b"} if form == "text" else {"prompt": "a", "completion": "b"}
        path = lines(tmp_path / "d.jsonl", [fields | {"sure": 0.25}])
    (row,) = load_rows(dataset(path, columns={"weight": "sure"}), "train")
    assert row.weight == 0.25
    assert "sure" not in row.meta


def test_system_text_is_kept_or_dropped(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", [{"instruction": "a", "output": "b", "system": "s"}])
    kept, dropped = (load_rows(dataset(path, system=s), "train")[0] for s in ("keep", "drop"))
    assert [t.role for t in kept.turns] == ["system", "user", "assistant"]
    assert [t.role for t in dropped.turns] == ["user", "assistant"]
