"""Random input: either it works, or it is one line and exit status 2; never a traceback.

The draws are the same every time; `tests/slow/test_fuzz.py` draws ten times as many others.
"""

import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings

from ablate import cli
from ablate.config.compose import expand
from ablate.config.grid import cells
from ablate.config.schema import Dataset
from ablate.data.rows import load_rows
from ablate.data.templates import render
from ablate.data.tokenizer import Tokenizer
from ablate.errors import UserError
from tests import fuzzing, stored

EXAMPLES = int(os.environ.get("ABLATE_FUZZ", "1"))  # times as many as the quick run has


def drawn(count):
    """Draw `count` examples, the same ones in every run of the quick suite."""
    return settings(
        max_examples=count * EXAMPLES,
        derandomize=EXAMPLES == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def answered(words, capsys):
    """Check what a command says, and return its exit status."""
    status = cli.main(words)
    told = capsys.readouterr()
    assert status in (0, 1, 2)
    if status == 2:
        assert told.err.startswith("ablate: ")
        assert told.err.count("\n") == 1
        assert told.err.rstrip("\n").isprintable()
    return status


def one_line(error):
    """Check the message of an error that `cli` prints."""
    assert len(str(error).strip()) > 10


@drawn(80)
@given(lines=fuzzing.overrides())
def test_any_override_composes_or_is_refused(lines):
    try:
        grid = expand(lines, most=200)
        found = list(cells(grid))
    except UserError as error:
        one_line(error)
        return
    assert len(found) == len(grid.points) >= 1
    assert all((entry.cell is None) == bool(entry.error) for entry in found)


@drawn(6)
@given(lines=fuzzing.overrides())
def test_any_plan_is_made_or_refused(lines, tmp_path_factory, capsys):
    out = tmp_path_factory.getbasetemp() / "never"
    answered(["plan", "evaluate=none", "train.lr=1e-3", f"out={out}", *lines], capsys)
    assert not out.exists()


def read(file, content, **more):
    """Return the rows in a data file with this content; None where it is refused."""
    file.write_bytes(content)
    data = Dataset(name="local", source="local", path=str(file), **more)
    try:
        return load_rows(data, "train"), data
    except UserError as error:
        return one_line(error)


@drawn(150)
@given(content=fuzzing.json_rows(fuzzing.ROW))
def test_any_file_of_rows_is_read_or_refused(content, tmp_path_factory):
    found = read(tmp_path_factory.getbasetemp() / "rows.jsonl", content)
    for row in found[0] if found else ():
        row.turns[-1].parts[-1][1].encode()  # what is read is text


@drawn(100)
@given(content=fuzzing.json_rows(fuzzing.CHAT))
def test_any_chat_is_read_or_refused(content, tmp_path_factory, tokenizer_folders):
    found = read(
        tmp_path_factory.getbasetemp() / "chat.json", content, format="messages", template="chat"
    )
    tokenizer = Tokenizer(tokenizer_folders["qwen"])
    for row in found[0][:2] if found else ():
        try:
            rendered = render(row, found[1], tokenizer)
        except UserError as error:
            one_line(error)
            continue
        rendered.text.encode()


@drawn(100)
@given(content=fuzzing.tables())
def test_any_table_of_rows_is_read_or_refused(content, tmp_path_factory):
    columns = {"instruction": "a", "output": "score"}
    read(tmp_path_factory.getbasetemp() / "rows.csv", content, columns=columns)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_any_bytes_of_a_columnar_file_are_read_or_refused(name, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({key: [str(value)] * 30 for key, value in fuzzing.ROW.items()})
    pq.write_table(table, tmp_path / "rows.parquet")
    arrow = str(tmp_path / "rows.arrow")
    with pa.OSFile(arrow, "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    whole = (tmp_path / name).read_bytes()

    @drawn(60)
    @given(content=fuzzing.torn(whole))
    def check(content):
        read(tmp_path / f"torn-{name}", content)

    check()


@drawn(8)
@given(content=fuzzing.tables())
def test_any_table_is_reported_or_refused(content, tmp_path_factory, capsys):
    folder = tmp_path_factory.getbasetemp() / "table"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "t.csv").write_bytes(content)
    status = answered(["report", str(folder / "t.csv")], capsys)
    assert (status == 0) == (folder / "report" / "index.html").exists()


@drawn(25)
@given(record=fuzzing.changed(stored.record("0123456789abcdef")), torn=fuzzing.torn(b"{}"))
def test_any_record_is_read_or_told(record, torn, tmp_path_factory, capsys):
    out = tmp_path_factory.getbasetemp() / "results"
    shutil.rmtree(out, ignore_errors=True)
    cell = out / "cells" / "0123456789abcdef"
    cell.mkdir(parents=True)
    (out / "designs").mkdir()
    (cell / "record.json").write_text(json.dumps(record))
    (out / "designs" / "0123.json").write_bytes(torn)
    for words in (
        ["status", str(out)],
        ["store", "check", str(out)],
        ["verify", "0123456789abcdef", str(out)],
        ["export", str(cell), "--to", str(out / "to")],
    ):
        answered(words, capsys)
    assert not (out / "to").exists()
