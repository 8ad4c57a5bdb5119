"""The command line: every verb's help, options, folders of levels, and what goes on to Hydra."""

import json
import shlex
import subprocess
import sys

import pytest

from ablate import app
from ablate.cli import VERBS, main
from ablate.commands import pretrain
from ablate.errors import UserError
from ablate.experiment.request import plan_grid
from tests.imports import ROOT

ONE = ["adapter=lora", "rank=2", "train.lr=1e-3", "evaluate=none"]
COMPOSING = [name for name, verb in VERBS.items() if any("config" in o.name for o in verb.options)]


def test_the_verbs_are_those_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [f"`ablate {verb} " in readme for verb in VERBS] == [True] * 9
    assert COMPOSING == ["run", "sweep", "plan", "tokens", "reproduce", "tune", "pretrain"]


def test_help_answers_without_torch_and_without_hydra():
    code = """
import io, json, sys
from contextlib import redirect_stdout
from ablate.cli import VERBS, main
shown = {}
for verb in VERBS:
    for flag in ("--help", "-h"):
        with redirect_stdout(io.StringIO()) as out:
            assert main([verb, "study=no_such_study", flag]) == 0
        shown[verb] = out.getvalue()
loaded = [m for m in ("torch", "hydra", "pandas") if m in sys.modules]
print(json.dumps([shown, loaded]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    shown, loaded = json.loads(done.stdout)
    assert loaded == []
    for name, verb in VERBS.items():
        lines = shown[name].splitlines()
        assert len(lines) < 200
        assert max(map(len, lines)) <= 100
        assert lines[0].startswith(f"usage: ablate {name} ")
        assert verb.about.split()[0] in shown[name]
        assert {option.name for option in verb.options} <= set(shown[name].split())
        assert sum(line.strip().startswith(f"ablate {name}") for line in lines) == 3


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_the_help_are_read(verb):
    for example in VERBS[verb].examples:
        program, name, *words = shlex.split(example, comments=True)
        assert (program, name) == ("ablate", verb)
        if "--cfg" not in words:
            VERBS[verb].parse(words)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("word", ["--no-such-thing", "--no-such-thing=3", "-x"])
def test_an_unknown_option_is_one_line_and_status_2(verb, word, capsys):
    assert main([verb, *ONE, word]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"ablate: {word.split('=')[0]}: no such option of ablate {verb}.")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep", "--retry-faild"], "Did you mean '--retry-failed'?"),
        (["plan", "--pwoer"], "Did you mean '--power'?"),
        (["plan", "--format=xml"], "--format=xml: not one of json, text."),
        (["plan", "--power=yes"], "--power: takes no value"),
        (["tokens", "--rows"], "--rows: needs a value"),
        (["tokens", "--rows=none"], "--rows=none: must be a whole number above 0"),
        (["report", "t.csv", "--margin=wide"], "--margin=wide: must be a number"),
        (["report", "a.csv", "b.csv"], "give one folder"),
        (["status", "a", "b"], "takes one folder"),
        (["plan", "--config-dir=nowhere"], "--config-dir=nowhere: no such folder"),
        (["sweep", "--config-dir", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(words, said, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


@pytest.fixture
def levels(tmp_path):
    """A folder with one level of the user's own, which weighs nothing but the completion."""
    (tmp_path / "levels" / "masking").mkdir(parents=True)
    text = (ROOT / "conf" / "masking" / "instruction.yaml").read_text()
    (tmp_path / "levels" / "masking" / "mine.yaml").write_text(text)
    return tmp_path / "levels"


@pytest.mark.parametrize("form", ["--config-dir DIR", "--config-dir=DIR"])
@pytest.mark.parametrize("verb", COMPOSING)
def test_every_verb_that_composes_takes_a_folder_of_levels(
    verb, form, levels, tmp_path, monkeypatch, capsys
):
    """Up to where a sweep or a pretraining would begin."""
    asked = []

    def sweep_grid(overrides, launch, *, workers=1, loader=None):
        asked.append(plan_grid(overrides, loader=loader).grid.points[0].tree["masking"]["name"])
        raise UserError("stopped here")

    monkeypatch.setattr(app, "sweep_grid", sweep_grid)
    monkeypatch.setattr(pretrain, "_make", lambda cell, *_: asked.append(cell.masking.name))
    option = shlex.split(form.replace("DIR", str(levels)))
    study = {"reproduce": ["none"], "tune": ["study=none"]}.get(verb, [])
    words = [verb, *study, *option, "masking=mine", *ONE, f"out={tmp_path / 'out'}"]
    status = main(words)
    printed = capsys.readouterr()
    if verb in ("plan", "tokens"):
        assert status == 0
        assert verb == "plan" or "masking=mine" in printed.out
    else:
        assert asked == ["mine"]
    without = [word for word in words if word not in option]
    assert main(without) == 2
    assert "masking=mine" in capsys.readouterr().err


def test_questions_about_the_configuration_go_to_hydra(capsys):
    assert main(["sweep", "--cfg", "job", "masking=none"]) == 0
    shown = capsys.readouterr().out
    assert "masking:" in shown
    assert "name: none" in shown or "completion: 1.0" in shown
    assert main(["run", "--hydra-help"]) == 0
    assert "Hydra" in capsys.readouterr().out
    assert main(["sweep", "--help"]) == 0
    assert "usage: ablate sweep" in capsys.readouterr().out


def test_the_flags_of_a_verb_are_its_own(capsys):
    for verb in ("plan", "report", "status"):
        assert main([verb, "--cfg", "job"]) == 2
        assert "--cfg: no such option" in capsys.readouterr().err


def test_the_plain_hydra_application_refuses_in_one_line():
    """`python -m ablate`, with and without -m: the way of a sweep that no verb stands before."""
    for multirun in ([], ["-m"]):
        words = [sys.executable, "-m", "ablate", *multirun, "masking=nobody"]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2
        said = done.stderr.strip()
        assert said.startswith("ablate: masking=nobody: not one of")
        assert "\n" not in said
