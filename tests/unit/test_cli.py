"""The command line: every verb's help, options, folders of levels, and what goes on to Hydra."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ablate import app
from ablate.cli import VERBS, main
from ablate.commands import pretrain
from ablate.config.compose import expand, level_of
from ablate.config.composer import Composer, config_loader
from ablate.config.overrides import parse
from ablate.config.settings import GIVEN, about_level, settings
from ablate.errors import LeaseLost, UserError
from ablate.experiment.request import plan_grid
from ablate.paths import conf_dir
from ablate.results.store import Store
from hydra_plugins.ablate_sweeper import AblateSweeper
from tests import commands_page
from tests.imports import ROOT

CHECKPOINT = ROOT / "ablate" / "micro" / "checkpoints" / "micro_0"
ONE = ["adapter=lora", "rank=2", "train.lr=1e-3", "evaluate=none"]
COMPOSING = [name for name, verb in VERBS.items() if any("config" in o.name for o in verb.options)]


def test_the_verbs_that_compose_cells():
    assert set(COMPOSING) == {"run", "sweep", "plan", "tokens", "reproduce", "tune", "pretrain"}


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
        assert len(lines) < 70
        assert max(map(len, lines)) <= 100
        assert lines[0].startswith(f"usage: ablate {name} ")
        assert verb.about.split()[0] in shown[name]
        accepted = {word for a in verb._parser()._actions for word in a.option_strings}
        assert {option.name for option in verb.options} < accepted
        assert accepted == set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", _options(shown[name])))
        assert sum(line.strip().startswith(f"ablate {name}") for line in lines) == 3
        assert all(f"\n  {each.split('=')[0]}=" in shown[name] for each in verb.settings)


def test_the_reference_of_the_documents_is_the_help():
    """`python -m tests.tree` writes it anew."""
    assert commands_page.BLOCK.search(commands_page.PAGE.read_text())[1] == (
        commands_page.reference()
    )


def _options(text):
    """The part of a verb's help that explains its options, without what is said of each."""
    lines = text.partition("options:\n")[2].partition("\n\n")[0].splitlines()
    return "\n".join(re.split(r" {2,}", line)[1] for line in lines if line.startswith("  -"))


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_the_help_are_read_and_compose(verb):
    for example in VERBS[verb].examples:
        program, name, *words = shlex.split(example, comments=True)
        assert (program, name) == ("ablate", verb)
        _, rest = VERBS[verb].parse(words)
        if verb in COMPOSING:
            named = [f"study={rest.pop(0)}"] if verb == "reproduce" else []
            assert expand([*named, *rest]).points


def test_every_setting_of_the_help_is_there_and_says_what_it_is():
    """Against PyYAML's reading of the same file, and what Hydra composes of it."""
    root = yaml.safe_load((conf_dir() / "config.yaml").read_text())
    groups = dict(next(iter(d.items())) for d in root.pop("defaults") if isinstance(d, dict))
    known = settings()
    found = {key: s.default for key, s in known.items() if s.group}
    assert found == {group: str(level) for group, level in groups.items() if group in known}
    assert set(groups) - set(known) == {
        "override hydra/sweeper", "override hydra/launcher", "override hydra/job_logging",
        "override hydra/hydra_logging",
    }  # fmt: skip
    leaves = dict(_leaves({key: root[key] for key in root if key not in ("hydra", "bundle")}))
    stated = {k: s for k, s in known.items() if not s.group and s.default != GIVEN}
    assert {key: yaml.safe_load(s.default) for key, s in stated.items()} == leaves
    assert set(known) - set(stated) - set(found) == {"dataset.path", "model.path", "train.lr"}
    for setting in known.values():
        assert setting.about, setting.key
        if "|" in setting.about:
            assert all(re.search(rf"\b{value}\b", setting.about) for value in setting.values)
    composer = Composer(config_loader())
    tree = {name: part.value for name, part in composer.cell([]).items()} | composer.command
    for key in (each for verb in VERBS.values() for each in verb.settings if "=" not in each):
        if key in stated:
            assert level_of(tree, key) == yaml.safe_load(stated[key].default), key
    for group in found:
        assert list(known[group].values) == sorted(composer.options(group))
        assert all(10 < len(about_level(group, level)) < 300 for level in known[group].values)


def _leaves(tree, above=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def test_values_of_a_setting_are_those_that_the_schema_takes():
    known = settings()
    assert known["loss.scope"].values == ("batch", "example", "microbatch")
    assert known["execution.micro_batch_size"].values == ()  # a number as well
    for setting in known.values():
        if setting.values and not setting.group and setting.key.partition(".")[0] != "train":
            with pytest.raises(UserError, match=f"{setting.key}=no_such_value"):
                plan_grid([f"{setting.key}=no_such_value"])


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], ["help", "--help"]])
def test_the_help_is_one_screen_that_names_every_verb_once(words, capsys):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines if re.match(r"  \w", line)] == list(VERBS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["help", "plan"], "usage: ablate plan "),
        (["--help", "plan"], "usage: ablate plan "),
        (["help", "masking"], "\n  stop_masked          Control, a known mistake"),
        (["help", "train"], "\n  train.schedule=cosine "),
        (["help", "dataset.splits"], "  dataset.splits.test=[0.95, 1.0]\n"),
        (["help", "loss.scope"], "  loss.scope=batch          over what it is divided (batch | "),
        (["help", "adapter=mora"], "kind: mora\n"),
        (["help", "settings"], "\n  execution.lanes=1 "),
        (["help", "commands"], "\nusage: ablate verify "),
    ],
)
def test_help_of_a_verb_a_setting_or_a_level(words, said, capsys):
    assert main(words) == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["help", "plna"], "help plna: no such verb or setting. Did you mean 'plan'?"),
        (["help", "maskin"], "Did you mean 'masking'?"),
        (["help", "adapter=mroa"], "help adapter=mroa: not one of mora, "),
        (["help", "rank=8"], "rank has no levels"),
        (["help", "plan", "sweep"], "takes one verb or setting"),
    ],
)
def test_help_of_what_is_not_there(words, said, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [["-m", "ablate.cli", "--help"], ["-m", "ablate.cli", "help", "settings"],
     ["-m", "ablate", "--help"], ["-m", "ablate", "-m", "--help"],
     ["-m", "ablate.cli", "plan", "--help"]],
)  # fmt: skip
def test_a_reader_that_leaves_is_no_error(words):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, *words], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_a_folder_of_levels_in_both_forms(verb, levels, capsys):
    for form in (["--config-dir", str(levels)], [f"--config-dir={levels}"]):
        given, rest = VERBS[verb].parse([*form, "word"])
        assert (given.config_dir, rest) == (str(levels), ["word"])
    assert main([verb, "--config-dir", "nowhere"]) == 2
    assert "--config-dir=nowhere: no such folder" in capsys.readouterr().err


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
        (["sweep", "--config-dir", "nowhere"], "--config-dir=nowhere: no such folder"),
        (["tune", "--config-dir="], "--config-dir: needs a value"),
        (["report", "t.csv", "--out", " "], "--out: needs a value"),
        (["plan", "--config-dir=conf", "--config-dir=."], "--config-dir: is given twice"),
        (["plan", "--margin=nan"], "--margin=nan: must be a number above 0"),
        (["plan", "--effect=-1"], "--effect=-1: must be a number above 0"),
        (["run", "hydra.launcher.n_jobs=2"], "ablate run computes its one cell in this process"),
        (["run", "--cfg", "foo"], "--cfg=foo: not one of all, hydra, job."),
        (["run", "--cfg=job", "--info"], "--info=all: cannot be asked together with --cfg=job"),
        (["sweep", "--hydra-help", "--cfg"], "cannot be asked together"),
        (["sweep", "--shell-completion"], "--shell-completion: no such option of ablate sweep."),
        (["sweep", "--cfg", "job", "masking=foo"], "masking=foo: not one of"),
        (["sweep", "--cfg", "job", "retry_failed=3"], "retry_failed=3: must be true or false"),
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

    def sweep_grid(overrides, launch, *, workers=1, loader=None, elsewhere=False):
        asked.append(plan_grid(overrides, loader=loader).grid.points[0].tree["masking"]["name"])
        raise UserError("stopped here")

    monkeypatch.setattr(app, "sweep_grid", sweep_grid)
    monkeypatch.setattr(pretrain, "_make", lambda cell, *_: asked.append(cell.masking.name))
    option = shlex.split(form.replace("DIR", str(levels)))
    study = {"reproduce": ["none"], "tune": ["study=none"]}.get(verb, [])
    words = [verb, *study, *option, "masking=mine", *ONE, f"out={tmp_path / 'out'}"]
    words += ["evaluate=validation"] * (verb == "tune")
    status = main(words)
    printed = capsys.readouterr()
    if verb in ("plan", "tokens"):
        assert status == 0
        assert verb == "plan" or "masking=mine" in printed.out
    else:
        assert asked == ["mine"]
    assert main([*words, "init=foo"]) == 2
    assert capsys.readouterr().err.startswith("ablate: init=foo: not one of")
    without = [word for word in words if word not in option]
    assert main(without) == 2
    assert "masking=mine" in capsys.readouterr().err


BROKEN = {
    "- a\n": "its file must be a table of settings, not a list",
    "a: [1\n": "no YAML: line 2: expected ',' or ']'",
    "a: 1\na: 2\n": "no YAML: line 2: found duplicate key a",
    "a: \x01\n": "no YAML: unacceptable character",
    "a: \xff\n": "'utf-8' codec can't decode",
}


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("group", ["masking", "study"])
@pytest.mark.parametrize("verb", ["plan", "sweep", "pretrain"])
def test_a_level_file_that_cannot_be_read(verb, group, text, levels, tmp_path, capsys):
    (levels / group).mkdir(exist_ok=True)
    (levels / group / "broken.yaml").write_bytes(text.encode("latin-1"))
    words = [f"--config-dir={levels}", f"{group}=broken", f"out={tmp_path / 'out'}"]
    assert main([verb, *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ablate: {group}=broken: ")
    assert BROKEN[text] in said
    assert said.count("\n") == 1


STUDIES = {
    "scales: 3": "study.scales=3: must be a table",
    "scales: {micro: [1]}": "micro=[1]: must be a table",
    "scales: {micro: {grids: {plw: [0]}}}": "grids={'plw': [0]}: must be a list of products",
    "scales: {micro: {grids: [3]}}": "grids=3: must be a table",
    "scales: {micro: {set: [3]}}": "set=[3]: must be a table",
    "scale: {micro: {}}": "study.scale: no such setting. Did you mean 'scales'?",
    "question: hm": "study.scales: is needed",
    "{report: maybe, scales: {micro: {}}}": "study.report=maybe: must be true or false",
}


@pytest.mark.parametrize("text", STUDIES)
def test_a_study_file_with_a_wrong_part(text, levels, tmp_path, capsys):
    (levels / "study").mkdir()
    (levels / "study" / "mine.yaml").write_text(text)
    assert main(["plan", f"--config-dir={levels}", "study=mine", f"out={tmp_path / 'out'}"]) == 2
    assert STUDIES[text] in capsys.readouterr().err


def test_questions_about_the_configuration_go_to_hydra(capsys):
    assert main(["sweep", "--cfg", "job", "masking=none"]) == 0
    shown = capsys.readouterr().out
    assert "masking:" in shown
    assert "name: none" in shown or "completion: 1.0" in shown
    assert main(["run", "masking=none", "--cfg"]) == 0
    assert capsys.readouterr().out == shown
    assert main(["run", "--hydra-help"]) == 0
    assert "Hydra" in capsys.readouterr().out
    assert main(["sweep", "--help"]) == 0
    assert "usage: ablate sweep" in capsys.readouterr().out


def test_the_runs_and_names_of_a_plan_add_up(tmp_path, capsys):
    """At PLW 0 the two modes are one run; to score it on another split too is no alias."""
    words = ["masking=none,instruction", "plw=0", "evaluate.heldout=[test],[validation]"]
    words += ["rank=2,4096", "skip_illegal=true", f"out={tmp_path}/out"]
    assert main(["plan", *words]) == 0
    told = " ".join(capsys.readouterr().out.split())
    line = (
        "6 cells (4 of the grid and 2 untouched bases) are 2 runs "
        "(2 aliases, 2 for further scores of another cell's run): "
    )
    assert line + "0 done, 0 failed, 2 to do 4 further cells are illegal and left out" in told
    for key in plan_grid(words).design.runs:
        Store(tmp_path / "out").fail(key, {"kind": "error", "error": "why"})
    for more, counts in [("false", "2 failed, 0 to do"), ("true", "0 failed, 2 to do")]:
        assert main(["plan", *words, f"retry_failed={more}"]) == 0
        assert counts in " ".join(capsys.readouterr().out.split())


def test_a_launched_job_finds_a_folder_with_any_name():
    sweeper, path = AblateSweeper(), Path("a=b, (c)/it's/bundles/1.json")
    sweeper.launcher = SimpleNamespace(launch=lambda jobs, initial_job_idx: jobs_seen.extend(jobs))
    jobs_seen: list = []
    sweeper._launch([path], 1)
    ((bundle, out),) = jobs_seen
    assert parse(bundle).value() == str(path)
    assert parse(out).value() == str(path.parent.parent)


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


@pytest.mark.usefixtures("own_cache")
def test_what_needs_held_out_prompts_is_refused_where_every_row_is_trained_on(tmp_path, capsys):
    rows = [json.dumps({"instruction": f"Say {i}", "output": f"It is {i}."}) for i in range(8)]
    (tmp_path / "d.jsonl").write_text("\n".join(rows))
    words = ["plan", "dataset=local", f"dataset.path={tmp_path / 'd.jsonl'}", "evaluate=none",
             "dataset.splits.train=[0,1]", "dataset.splits.validation=[1,1]", "train.lr=1e-3",
             "dataset.splits.test=[1,1]", "evaluate.heldout=[]", f"out={tmp_path}/o"]  # fmt: skip
    assert main([*words, "evaluate.measures=[prompt_bleu,weight_distance]"]) == 0
    capsys.readouterr()
    assert main([*words, "evaluate.measures=[generation_length]"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "its test part holds no rows" in line
    assert "only generation_length needs them" in line


def test_tokens_of_ones_own_data_and_model_need_no_learning_rate_and_no_test_part(tmp_path, capsys):
    """The README's first command for data of one's own, on ten rows."""
    rows = [
        {"messages": [{"role": "user", "content": f"Say {i}."},
                      {"role": "assistant", "content": f"{i}."}]}
        for i in range(10)
    ]  # fmt: skip
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    base = Path(shutil.copytree(CHECKPOINT, tmp_path / "base"))
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    words = ["dataset=local", f"dataset.path={tmp_path / 'chat.jsonl'}", "dataset.template=chat"]
    words += ["model=local", f"model.path={base}", "masking=none", "plw=0.1"]
    assert main(["tokens", *words]) == 0, capsys.readouterr().err
    assert "completion" in capsys.readouterr().out


def test_a_process_that_another_has_taken_the_place_of_says_so_in_a_line(monkeypatch, capsys):
    def lost(given, rest):
        raise LeaseLost

    monkeypatch.setitem(VERBS, "doctor", replace(VERBS["doctor"], run=lost))
    assert main(["doctor"]) == 3
    assert capsys.readouterr().err == (
        "ablate: stopped: this process stood still, and another has taken its work over; records "
        "are kept\n"
    )
