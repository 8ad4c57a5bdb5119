"""Every kind of bad input: one clear line, exit status 2, nothing started, nothing written."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ablate import app, cli
from tests.bad_inputs import files as broken
from tests.bad_inputs.rows import ROWS, words_of
from tests.imports import ROOT
from tests.imports import files as modules

BASE = ["evaluate=none", "train.lr=1e-3", "train.max_steps=1"]
CASES = {
    f"{kind}, {number}": (command, says)
    for kind, table in ROWS.items()
    for number, (command, says) in enumerate(table.items(), start=1)
}
LEAST = 280
# About the command as a whole: every verb that composes cells checks them.
EVERYWHERE = {
    "retry_failed=foo": "retry_failed=foo.*true or false",
    "skip_illegal=1": "skip_illegal=1.*true or false",
    "bundle=foo": "bundle=foo.*left out",
    "pretrain.hidden_size=8": "pretrain.hidden_size=8.*pretrain",
    "hydra.sweeper=foo": "hydra.sweeper=foo.*hydra/launcher",
    "hydra/launcher=foo": "hydra/launcher=foo: (not one of .*joblib|ablate run computes)",
    "hydra.launcher.n_jobs=0": "n_jobs",
    "out=FILES/good.jsonl/x": "good.jsonl is no folder",
    "out=": "out=: must be a folder",
}
# Started as the program is, for what a process alone shows: the words as bytes, and the streams.
STARTED = (
    b"plan sham=\xff\xfe",
    b"plan seed=" + b"9" * 5000,
    b"report FILES/pipe.csv",
    b"sweep out=FILES/pipe.jsonl",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    broken.make(root)
    return root


def refused(words, says, capsys):
    """Check that a command is refused, in one line that fits a screen."""
    assert cli.main(words) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1, told.err
    assert told.err.startswith("ablate: ")
    assert not told.err.startswith("ablate: ablate ")
    assert told.err.rstrip("\n").isprintable()
    assert len(told.err) < 1100
    assert re.search(says, told.err.strip()), told.err
    assert "Traceback" not in told.out


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_status_2(case, files, tmp_path, capsys, monkeypatch):
    def started(*_, **__):
        raise AssertionError("cells were started")

    command, says = CASES[case]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(app, "work", started)
    environment, words = words_of(command, files, tmp_path / "out")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = {path: path.lstat().st_mtime_ns for path in files.rglob("*")}
    refused(words, says, capsys)
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]
    assert before == {path: path.lstat().st_mtime_ns for path in files.rglob("*")}


# What names a path that is not there, and is refused before what would read it is imported.
ABSENT = (
    "report nowhere.csv", "report nowhere", "report /dev/null --frozen nowhere.json",
    "compare nowhere elsewhere", "compare a b --in nowhere", "status nowhere",
    "store check nowhere", "judge nowhere --judge rule", "plan --power --pilot nowhere",
    "export nowhere --to x", "verify nowhere",
)  # fmt: skip
HEAVY = ("pandas", "scipy", "torch", "hydra")  # a second and more, each


def test_what_is_not_there_is_refused_before_anything_heavy_is_imported(tmp_path):
    code = f"""
import sys
from ablate import cli
for line in {ABSENT!r}:
    assert cli.main(line.split()) == 2, line
    assert not set({HEAVY!r}) & set(sys.modules), (line, set({HEAVY!r}) & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == len(ABSENT)


def messages(source):
    """How the texts begin that a module refuses a request with."""
    for node in ast.walk(ast.parse(source)):
        called = getattr(node, "func", None)
        if getattr(called, "id", "") in ("UserError", "AnalysisError", "unknown", "refuse"):
            text = node.args[0] if node.args else None
            part = text.values[0] if isinstance(text, ast.JoinedStr) and text.values else text
            if isinstance(part, ast.Constant):
                yield str(part.value)


def test_no_message_begins_with_the_name_of_the_program():
    """It stands before every message already, `errors.refuse`."""
    paths = [*modules("ablate"), *modules("analysis")]
    found = {path: list(messages(path.read_text())) for path in paths}
    assert sum(map(len, found.values())) > 300
    assert not {p: m for p, own in found.items() for m in own if re.match(r"ablate\b(?!\.)", m)}
    assert list(messages('raise UserError(f"ablate {verb}: no")')) == ["ablate "]


def test_the_table_is_long_and_has_every_verb():
    verbs = {words_of(command, Path("a"), Path("b"))[1][0] for command, _ in CASES.values()}
    assert len(CASES) >= LEAST
    assert set(cli.VERBS) <= verbs


@pytest.mark.parametrize("verb", ["sweep", "run", "plan", "tokens", "tune"])
def test_every_verb_checks_what_is_about_the_command(verb, files, tmp_path, capsys):
    for word, says in EVERYWHERE.items():
        named = word.replace("FILES", str(files))
        refused([verb, *BASE, f"out={tmp_path}/out", named], says, capsys)
    assert not list(tmp_path.iterdir())


def test_the_program_itself_refuses_so(files, tmp_path):
    for command in STARTED:
        words = [w.replace(b"FILES", os.fsencode(files)) for w in command.split()]
        done = subprocess.run(
            [sys.executable, "-m", "ablate.cli", *words],
            capture_output=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(b"ablate: ")
        assert done.stderr.count(b"\n") == 1
        assert not list(tmp_path.iterdir())


def test_a_pretraining_that_is_refused_leaves_nothing_behind(files, tmp_path, capsys):
    out, rows = f"out={tmp_path}/a/b", f"dataset.path={files}/good.jsonl"
    for words, says in [
        (
            ["dataset=local", rows, "pretrain.vocab_size=270"],
            "pretrain.vocab_size=270: these rows need at least",
        ),
        (["dataset=local", "dataset.path=nowhere.jsonl"], "nowhere.jsonl"),
    ]:
        refused(["pretrain", out, *words], says, capsys)
    assert not list(tmp_path.iterdir())


def test_a_disk_too_small_for_the_records(tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    assert cli.main(["sweep", *BASE, f"out={tmp_path / 'out'}"]) == 2
    assert "MB are needed" in capsys.readouterr().err
    assert not list(tmp_path.rglob("record.json"))


def test_the_good_rows_are_accepted(files, tmp_path):
    """What the cases break is otherwise right: the same request with good rows is a plan."""
    for name in ("good.jsonl", "good.parquet", "good.arrow"):
        words = ["dataset=local", f"dataset.path={files}/{name}"]
        assert cli.main(["plan", *BASE, *words, f"out={tmp_path / 'out'}"]) == 0
    chat = ["dataset=local", f"dataset.path={files}/chat.jsonl", "dataset.template=chat"]
    model = ["model=local", f"model.path={files}/chat"]
    assert cli.main(["plan", *BASE, *chat, *model, f"out={tmp_path / 'out'}"]) == 0


def test_a_thousand_turns_are_read(files, tmp_path, capsys):
    """A conversation far longer than the model reads is cut, not walked into ever deeper."""
    turns = [{"role": role, "content": "Hm."} for role in ("user", "assistant")] * 500
    rows = [[{"role": "user", "content": f"Say {i}."}, *turns[1:]] for i in range(2)]
    (tmp_path / "long.jsonl").write_text(broken.jsonl([{"messages": row} for row in rows]))
    words = ["dataset=local", f"dataset.path={tmp_path}/long.jsonl", "dataset.template=chat"]
    words += ["dataset.splits={train: [0, 1], validation: [1, 1], test: [1, 1]}"]
    words += ["model=local", f"model.path={files}/chat", f"out={tmp_path}/out"]
    assert cli.main(["tokens", *words, "--rows", "1"]) == 0, capsys.readouterr().err
    assert "·Say|·|" in capsys.readouterr().out
