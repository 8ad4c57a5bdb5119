"""Programs that a model wrote: what their tests say, and what they cannot reach."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest

from ablate.config.schema import Evaluate, Execution
from ablate.errors import UserError
from ablate.evaluate import harness, sandbox
from ablate.evaluate.code_eval import CodeEval, pass_at_k
from ablate.evaluate.processor_time import Used, idle
from ablate.evaluate.sandbox import isolation, run
from ablate.evaluate.tasks_index import running_code
from ablate.experiment import notes
from analysis.report import generated_code
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
DEVICES = """
import os
assert sorted(os.listdir('/dev')) == ['full', 'null', 'random', 'urandom', 'zero']
open('/dev/null', 'w').write('x')
assert len(os.urandom(4)) == len(open('/dev/urandom', 'rb').read(4)) == 4
"""
SOCKETS = """
import os
assert os.path.exists('/run/current-system') or set(os.listdir('/run')) <= {'mount'}, 'daemons'
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
    monkeypatch.setattr(sandbox, "ASLEEP", 0.5)
    assert run("while True: pass", seconds=1) == "timed out"
    assert run("import time\ntime.sleep(600)", seconds=1) == "timed out"
    assert run("import time\nwhile True: time.sleep(0.01)", seconds=1) == "timed out"


PROCESSES = """
import os, time
for _ in range(4):
    if not os.fork():
        while time.process_time() < 0.7: pass
        os._exit(0)
for _ in range(4): os.wait()
"""


def test_the_processes_of_a_program_have_one_limit_together():
    assert run(PROCESSES, seconds=1) == "timed out"
    assert run(PROCESSES, seconds=4) == "passed"


def test_a_program_that_something_else_ends_is_tried_again(monkeypatch):
    """The kernel ends processes where memory runs out, which says nothing of the program."""
    tried = []
    once = sandbox._once
    monkeypatch.setattr(sandbox, "_once", lambda *words: tried.append(words) or once(*words))
    said = run("import os\nos.kill(os.getpid(), 9)")
    assert (said, len(tried)) == ("failed: it was killed", 2)


@pytest.mark.parametrize(
    ("threads", "processor", "seconds"),
    [
        ({"1": 0.0}, 0.0, 10.0),  # it slept
        ({"1": 10.0}, 0.5, 0.0),  # it waited for a processor nearly always
        ({"1": 3.0, "2": 1.0}, 1.0, 6.0),
        ({"1": 9.0, "2": 9.0}, 9.0, 0.0),  # two threads at a time
        ({"1": 0.0}, 4.0, 6.0),  # processes that began and ended in between
        ({}, 4.0, 1.0),  # the system counts no waits
    ],
)
def test_what_a_program_waits_for_a_processor_is_no_idle_time(threads, processor, seconds):
    assert idle(Used(5.0, 1.0), Used(15.0, 1.0 + processor, threads)) == pytest.approx(seconds)


BURNS = "while True: pass"
WORKS = "import time\nwhile time.process_time() < 0.6: pass"


@pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="this kernel counts no waits for processors"
)
def test_the_verdict_is_the_same_on_a_busy_machine(monkeypatch):
    """Six others on the one processor that the program has: it waits for more than it may sleep."""
    monkeypatch.setattr(sandbox, "ASLEEP", 0.8)
    monkeypatch.setattr(sandbox, "PAUSE", 0.1)
    waited = []
    measured = sandbox.used

    def used(pid):
        waited.append(measured(pid))
        return waited[-1]

    monkeypatch.setattr(sandbox, "used", used)
    all_of_them = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, all_of_them)
        os.sched_setaffinity(0, {min(all_of_them)})
        for _ in range(6):
            words = [sys.executable, "-I", "-S", "-c", BURNS]
            burner = stack.enter_context(subprocess.Popen(words, start_new_session=True))
            stack.callback(burner.kill)
        said = run(WORKS)
    assert said == "passed"
    assert waited[-1].at - waited[0].at > 2 * 0.8, "the machine was not busy"


SLOW, KILLED, REFUSED = "sleep 60", "kill -9 $$", "exit 1"


@pytest.mark.parametrize("outcome", [SLOW, KILLED])
def test_isolation_that_cannot_be_told_is_refused_and_asked_again(outcome, monkeypatch):
    """A machine that is too busy for the probe is none without namespaces."""
    monkeypatch.setattr(sandbox, "_has_tools", lambda: True)
    monkeypatch.setattr(sandbox, "START", 0.2)
    monkeypatch.setattr(sandbox, "PAUSE", 0.01)
    isolation.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sandbox, "_UNSHARE", ("sh", "-c", outcome, "sh"))
            with pytest.raises(UserError, match="whether programs can be kept apart"):
                run("assert True")
            assert "could not be told" in sandbox.described()
            patch.setattr(sandbox, "_UNSHARE", ("sh", "-c", REFUSED, "sh"))
            assert isolation() == "limits"
            assert "ALONE" in sandbox.described()
    finally:
        isolation.cache_clear()


def test_a_program_that_could_not_be_started_is_not_judged(monkeypatch):
    """What failed is not the program: in no case is it run without what keeps it apart."""
    monkeypatch.setattr(sandbox, "isolation", lambda: "namespaces")
    monkeypatch.setattr(sandbox, "_UNSHARE", ("sh", "-c", REFUSED, "sh"))
    monkeypatch.setattr(sandbox, "PAUSE", 0.01)
    with pytest.raises(sandbox.NotJudged, match="it could not be started"):
        run("assert True")
    monkeypatch.setattr(sandbox, "_UNSHARE", ("sh", "-c", SLOW, "sh"))
    monkeypatch.setattr(sandbox, "START", 0.1)
    with pytest.raises(sandbox.NotJudged, match="it could not be started"):
        run("assert True")


@apart
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("open('/tmp/a', 'w').write('x')\nassert open('/tmp/a').read() == 'x'", "passed"),
        ("open('{folder}/a', 'w')", "failed: FileNotFoundError"),  # another /tmp
        ("open('{root}/a', 'w')", "failed: OSError: [Errno 30] Read-only file system"),
        ("open('/dev/ablate-sandbox', 'w')", "failed: OSError: [Errno 30]"),
        ("open('/run/ablate-sandbox', 'w')", "failed: OSError: [Errno 30]"),
        (DEVICES, "passed"),
        (SOCKETS, "passed"),
        ("open('/proc/1/environ', 'rb')", "failed: PermissionError"),
        ("open('/proc/1/fd/0', 'rb')", "failed: PermissionError"),  # where the token is
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
    monkeypatch.setattr(sandbox, "ASLEEP", 0.5)
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


def test_a_report_says_what_kept_generated_programs_apart():
    rows = pd.DataFrame(
        {"task": ["humaneval", "mbpp", "mmlu"], "isolation": ["namespaces", "limits", None]}
    )
    first, second = generated_code.sentence(rows)
    assert first == (
        "Generated programs of humaneval were run in namespaces, without network and without "
        "your files to write to."
    )
    assert "of mbpp were run under limits of time and memory alone" in second
    assert generated_code.sentence(rows[["task"]]) == generated_code.sentence(rows[2:]) == []


def test_a_sweep_says_what_keeps_generated_programs_apart(monkeypatch):
    assert running_code(["humaneval", "gsm8k", "micro_knowledge"]) == ["humaneval"]
    for kept, told in (("namespaces", "no network"), ("limits", "ALONE")):
        monkeypatch.setattr(sandbox, "isolation", lambda kept=kept: kept)
        asked = Evaluate(name="e", tasks=("humaneval", "gsm8k"), run_code=True)
        (line,) = notes._of_code([asked])
        assert line.startswith("humaneval: what the model writes is run here under")
        assert told in line
    assert notes._of_code([Evaluate(name="e", tasks=("gsm8k",), run_code=True)]) == []
    assert notes._of_code([replace(asked, run_code=False)]) == []  # refused: it runs nowhere


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
        assert one.isolation == isolation()
        assert dict(one.items) == {0: 1.0, 1: 0.0}
    assert len(json.loads(said["drawn", "pass@3"].answers[0].output)) == 3
