"""Programs that a model wrote: what their tests say, and what they cannot reach."""

import json
from itertools import combinations
from pathlib import Path

import pytest

from ablate.config.schema import Evaluate, Execution
from ablate.evaluate import harness, sandbox
from ablate.evaluate.sandbox import CodeEval, isolation, pass_at_k, run
from tests.imports import ROOT

apart = pytest.mark.skipif(
    isolation() == "limits", reason="this kernel lets no user make namespaces"
)

# What a verdict begins with stands on no command line, and writing a lot is none.
FROM_THE_COMMAND_LINE = r"""
import os
word = open('/proc/self/cmdline', 'rb').read().split(b'\0')[-2]
for i in range(3, 20):
    try: os.write(i, word + b' passed')
    except OSError: pass
os._exit(0)
"""
MUCH = r"""
import os
for i in range(40):
    try: os.write(3, b'x' * 10**6)
    except OSError: pass
assert False
"""
A_THREAD = """
import threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("def f(x):\n    return x + 1\n\nassert f(1) == 2", "passed"),
        ("assert 1 == 2, 'no'", "failed: AssertionError: no"),
        ("def f(: x", "failed: SyntaxError"),
        ("import numpy", "failed: ModuleNotFoundError"),
        ("x = [0] * 10**10", "failed: MemoryError"),
        # What ends before its last line has shown nothing, whatever it says of itself.
        ("import sys\nsys.exit(0)\nassert False", "failed: it ended before its tests did"),
        ("import os\nos._exit(0)\nassert False", "failed: it ended before its tests did"),
        ("print('passed')\nimport os\nos.write(1, b'passed')\nos._exit(0)", "failed: it ended"),
        (FROM_THE_COMMAND_LINE, "failed: it ended"),
        (MUCH, "failed"),
        (A_THREAD, "passed"),
        ("class E(Exception):\n  def __str__(self): raise E\nraise E", "failed: E"),
        ("raise KeyboardInterrupt", "failed: KeyboardInterrupt"),
        ("print('0' * 10**6)", "passed"),  # what it prints is thrown away
    ],
)
def test_a_program_passes_if_its_tests_did(program, said):
    assert run(program).startswith(said)


def test_a_program_ends_in_time_whether_it_works_or_sleeps(monkeypatch):
    monkeypatch.setattr(sandbox, "START", 3.0)
    assert run("while True: pass", seconds=1) == "timed out"
    assert run("import time\ntime.sleep(600)", seconds=1) == "timed out"


@apart
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("open('/tmp/a', 'w').write('x')\nassert open('/tmp/a').read() == 'x'", "passed"),
        ("open('{folder}/a', 'w')", "failed: FileNotFoundError"),  # another /tmp
        ("open('{root}/a', 'w')", "failed: OSError: [Errno 30] Read-only file system"),
        ("open('/dev/shm/ablate-sandbox', 'w')", "failed: OSError: [Errno 30]"),
        ("open('/proc/sys/vm/swappiness', 'w')", "failed: OSError: [Errno 30]"),
        (
            "import subprocess\nsubprocess.run(['mount', '-o', 'remount,rw,bind', '/'])\n"
            "open('{root}/a', 'w')",
            "failed: OSError: [Errno 30]",
        ),
        ("import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)", "failed: "),
        ("import os\nassert not os.path.exists('/proc/{pid}/environ')", "passed"),
        ("import os\nassert 'SECRET' not in os.environ", "passed"),
        ("import os\nos.kill({pid}, 0)", "failed: ProcessLookupError"),
    ],
)
def test_a_program_reaches_nothing_of_the_machine(program, said, tmp_path, monkeypatch):
    import os
    import socket

    monkeypatch.setenv("SECRET", "x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        known = {
            "folder": tmp_path,
            "root": "/usr/share" if ROOT.is_relative_to("/tmp") else ROOT,  # /tmp is another one
            "pid": os.getpid(),
            "port": server.getsockname()[1],
        }
        for name, value in known.items():
            program = program.replace(f"{{{name}}}", str(value))
        found = run(program)
    assert found.startswith(said), found
    assert list(tmp_path.iterdir()) == []


def test_without_namespaces_the_limits_still_hold(monkeypatch):
    monkeypatch.setattr(sandbox, "isolation", lambda: "limits")
    monkeypatch.setattr(sandbox, "START", 3.0)
    assert run("assert True") == "passed"
    assert run("x = [0] * 10**10").startswith("failed: MemoryError")
    assert run("import time\ntime.sleep(600)", seconds=1) == "timed out"


@pytest.mark.parametrize(("count", "passed"), [(1, 0), (1, 1), (5, 0), (5, 2), (5, 5), (7, 1)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(count, passed):
    """By counting every draw of k answers without putting back."""
    right = [i < passed for i in range(count)]
    for k in range(1, count + 1):
        draws = [any(right[i] for i in own) for own in combinations(range(count), k)]
        assert pass_at_k(count, passed, k) == pytest.approx(sum(draws) / len(draws))


def test_pass_at_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="pass@3 of 1 of 2 answers"):
        pass_at_k(2, 1, 3)


def test_the_metric_answers_as_the_hubs_does():
    """Chen et al.'s estimate over problems, and the outcome of every answer."""
    right, wrong = "def f(x):\n    return x + 1", "def f(x):\n    return x"
    tests = ["assert f(1) == 2", "assert f(2) == 4"]
    rates, outcomes = CodeEval().compute(
        references=tests, predictions=[[right, wrong], [wrong, wrong]], k=[1, 2, 10]
    )
    assert rates == {"pass@1": 0.25, "pass@2": 0.5}
    assert [one["passed"] for _, one in outcomes[0]] == [True, False]
    assert outcomes[1][0][1]["result"].startswith("failed: AssertionError")


HUMANEVAL = """
include: {humaneval}
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
repeats: {repeats}
generation_kwargs: {{until: ["\\n"], do_sample: {drawn}, temperature: 1.0, max_gen_toks: 4}}
metric_list:
  - {{metric: !function "{utils}.pass_at_k", aggregation: mean, higher_is_better: true, k: {k}}}
"""


@pytest.fixture
def humaneval(tmp_path):
    """HumanEval as lm-eval ships it, on two problems: one any answer solves, one none."""
    import lm_eval.tasks

    shipped = Path(lm_eval.tasks.__file__).parent / "humaneval"
    rows = [
        # What the model adds stands in a comment.
        {"prompt": "def f(x):\n    return x + 1\n# ", "entry_point": "f",
         "test": "\ndef check(f):\n    assert f(1) == 2"},
        {"prompt": "def f(x):\n    return x\n# ", "entry_point": "f",
         "test": "\ndef check(f):\n    assert f(1) == 2"},
    ]  # fmt: skip
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(name, *, repeats, k, drawn):
        (tmp_path / "utils.py").write_text((shipped / "utils.py").read_text())
        file = tmp_path / f"{name}.yaml"
        text = HUMANEVAL.format(
            humaneval=shipped / "humaneval.yaml", name=name, data=data, repeats=repeats,
            drawn=str(drawn).lower(), k=k, utils="utils",
        )  # fmt: skip
        file.write_text(text.replace('"utils.pass_at_k"', "utils.pass_at_k"))
        return str(file)

    return made


def test_humaneval_is_scored_in_the_sandbox(humaneval, model, tokenizer):
    """Its own task file and metric, with lm-eval's filters; no metric comes from the hub."""
    task = humaneval("greedy", repeats=1, k="[1]", drawn=False)
    several = humaneval("drawn", repeats=3, k="[1, 3]", drawn=True)
    asked = Evaluate(name="e", tasks=(task, several), run_code=True)
    found = harness.score(model, tokenizer, asked, execution=Execution())
    said = {(s.task, s.metric.partition(",")[0]): s for s in found}
    assert {key: one.value for key, one in said.items()} == {
        ("greedy", "pass@1"): 0.5, ("drawn", "pass@1"): 0.5, ("drawn", "pass@3"): 0.5,
    }  # fmt: skip
    for one in found:
        assert (one.unit, one.higher_is_better, one.n) == ("fraction", True, 2)
        assert dict(one.items) == {0: 1.0, 1: 0.0}
    assert len(json.loads(said["drawn", "pass@3"].answers[0].output)) == 3
