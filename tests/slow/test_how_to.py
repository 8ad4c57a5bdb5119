"""Every task of docs/how_to.md and step of docs/tutorial.md, by the commands that stand there.

They are carried out in their order; the tutorial's runs are shortened.

A block whose first line is a comment with a path is written to that file. `ablate` is run in this
process, all else by bash; cells of a sweep are trained here too, as starting workers takes longer.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ablate
from ablate import cli
from ablate.adapters import plugged as methods
from ablate.paths import conf_dir
from analysis.report import plugged as questions

DOCS = conf_dir().parent / "docs"
PAGE = (DOCS / "how_to.md").read_text(encoding="utf-8")
STEPS = re.split(r"^## ", (DOCS / "tutorial.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[
    1:
]
SHORTER = ["train.max_steps=5", "evaluate.limit=20"]
PARTS = re.split(r"^### ", PAGE, flags=re.MULTILINE)
TASKS = {part.partition("\n")[0]: part for part in PARTS[1:]}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"^# (\S+\.(?:yaml|py|toml))\n")
MICRO = Path(ablate.__file__).parent / "micro" / "checkpoints" / "micro_0"

pytestmark = pytest.mark.slow


def test_there_are_thirty_tasks():
    assert len(TASKS) >= 30


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The working folder, with the files that the page takes for given."""
    folder = tmp_path_factory.mktemp("work")
    rows = [{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(60)]
    boxes = [{"question": f"Box {n}?", "choices": ["red", "blue"], "gold": n % 2} for n in range(9)]
    for name, lines in (("rows", rows), ("boxes", boxes)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    scores = [f"{arm},{seed},{70 + arm + seed % 3}" for arm in (0, 1) for seed in range(8)]
    (folder / "scores.csv").write_text("\n".join(["arm,seed,accuracy", *scores]), encoding="utf-8")
    shutil.copytree(MICRO, folder / "base")
    for _, text in BLOCK.findall(PARTS[0]):
        written(folder, text)
    return folder


def written(folder, text):
    """Write a block that names its file; return whether it does."""
    found = FILE.match(text)
    if found:
        path = folder / found[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        body = text[found.end() :]
        path.write_text(body, encoding="utf-8")
    return bool(found)


def commands(text):
    """Yield the lines of a block, those that a backslash continues as one."""
    yield from (line for line in text.replace("\\\n", " ").splitlines() if line.strip())


def carried_out(line, folder, known, shorter=()):
    """Run one line; `known` are the variables of the shell that were set before."""
    name, _, value = line.partition("=")
    if name.isidentifier() and value.startswith("$("):
        known[name] = shell(f"echo {value}", folder).strip()
        return
    words = shlex.split(re.sub(r"\$(\w+)", lambda found: known[found[1]], line))
    if words[0] == "pip":
        site = folder / "site"
        shutil.rmtree(site, ignore_errors=True)
        installed(folder, site, words[2])
    elif words[0] == "ablate":
        launcher = ["hydra/launcher=basic"] * (words[1] in ("sweep", "tune"))
        fewer = shorter if words[1] in ("sweep", "plan") else ()
        fine = (0, 1) if words[1] == "compare" else (0,)  # 1: the second is worse
        assert cli.main([*words[1:], *launcher, *fewer]) in fine, line
    else:
        print(shell(line, folder))


def installed(folder, site, package):
    """Install a package into a folder of its own, without a network, and let it be found."""
    quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(site), package]
    subprocess.run(command, cwd=folder, check=True)
    forget()


def forget():
    """Forget what installed packages were found to add: the list is kept for a process."""
    for cached in (methods.points, methods.row, questions.points):
        cached.cache_clear()
    for name in [n for n in sys.modules if n.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def forgotten():
    yield
    forget()


def shell(line, folder):
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=folder, text=True,
                          capture_output=True, env=dict(os.environ), check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def followed(text, place, shorter=()):
    """Carry out the blocks of a part of a page."""
    known = {}
    for kind, block in BLOCK.findall(text):
        if written(place, block):
            continue
        if kind == "bash":
            for line in commands(block):
                carried_out(line, place, known, shorter)
        else:
            assert kind == "python"
            exec(compile(block, text.partition("\n")[0], "exec"), {})


@pytest.mark.parametrize("task", TASKS)
def test_a_task(task, place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place / "site"))
    assert any(kind in ("bash", "python") for kind, _ in BLOCK.findall(TASKS[task]))
    followed(TASKS[task], place)
    shown = capfd.readouterr()
    EXPECTED.get(task, lambda shown, place: None)(shown.out + shown.err, place)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    return tmp_path_factory.mktemp("tutorial")


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.partition("\n")[0])
def test_a_step_of_the_tutorial(step, lesson, monkeypatch):
    monkeypatch.chdir(lesson)
    followed(step, lesson, SHORTER)


def said(*words):
    def check(shown, place):
        for word in words:
            assert word in shown, shown

    return check


def there(*paths):
    def check(shown, place):
        for path in paths:
            assert list(place.glob(path)), path

    return check


EXPECTED = {
    "Go on after a stop": said("0 new"),
    "Add a benchmark later": said("0 failed"),
    "Take a table into a paper": said(r"\begin{tabular}"),
    "Compare two arms, two cells, two log files": said("verdict: B"),
    "Compare two arms in Python": said("estimate", "p_adjusted"),
    "Write an adapter": there("results/narrow/cells/*/record.json"),
    "Put a question into the report": there("results/grid/report/tables/spread.csv"),
    "Export an adapter to PEFT, or a whole model": there(
        "adapter/adapter_config.json", "model/config.json"
    ),
    "Check that a record reproduces": said("reproduces"),
    "Give the numbers to other programs": there("csv/results.csv", "eee/**/*.json"),
}
