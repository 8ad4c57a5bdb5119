"""What ends a sweep before its time, and what does not: signals, dead workers, faults, failures."""

import collections
import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from ablate import child, interrupts, pool, work
from ablate.app import halted
from ablate.errors import Halted, UserError
from ablate.evaluate.scoring import _tried
from ablate.machine import MachineFault, fault
from ablate.results import process
from ablate.results.log import logged, say
from ablate.results.store import Store
from ablate.terminal import unbroken
from ablate.training.history import Diverged
from ablate.watch import Watch, alike

KEY = "0123456789abcdef"


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path / "out")
    found.prepare()
    return found


def error(number, text=""):
    return OSError(number, text or os.strerror(number), "/data/file")


def wrapped(inner):
    try:
        try:
            raise inner
        except Exception as found:
            raise ValueError("while writing") from found
    except ValueError as outer:
        return outer


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (error(errno.ENOSPC), "no space is left"),
        (error(errno.EDQUOT), "quota"),
        (error(errno.EROFS), "may only be read"),
        (error(errno.ESTALE), "is gone"),
        (error(errno.EIO), "disk failed"),
        (wrapped(error(errno.ENOSPC)), "no space is left"),
        (MemoryError(), "no memory"),
        (error(errno.ENOMEM), "no memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't"), "memory"),
        (OSError("[Errno 28] Error writing bytes. Detail: No space left on device"), "no space"),
        (error(errno.ENOENT), ""),
        (error(errno.EACCES), ""),
        (ValueError("no space left on device"), ""),  # a text of the cell's own
        (RuntimeError("CUDA out of memory"), ""),
        (UserError("dataset.path: no such file"), ""),
    ],
)
def test_what_is_the_machines_fault_and_what_the_cells(found, says):
    assert says in fault(found)
    assert bool(fault(found)) == bool(says)


def attempt(store, monkeypatch, raised):
    def run_cells(*_, **__):
        with logged(store.out / "log.txt"):
            for number in range(30):
                say(f"line {number}")
            raise raised

    monkeypatch.setattr(work, "build", lambda tree: tree)
    with store.claim(KEY):
        return work._attempt(run_cells, store, KEY, [{}])


def test_a_fault_of_the_machine_stops_the_sweep_and_the_cell_stays_missing(store, monkeypatch):
    with pytest.raises(MachineFault, match=r"no space is left \(/data/file\).*same command"):
        attempt(store, monkeypatch, error(errno.ENOSPC))
    assert store.failures(KEY) == []
    assert store.claimed(KEY) is None


@pytest.mark.parametrize(
    ("raised", "kind"), [(Diverged(3, "loss", float("nan")), "diverged"), (ValueError(), "error")]
)
def test_a_failure_keeps_the_last_lines_of_the_log(store, monkeypatch, raised, kind):
    attempt(store, monkeypatch, raised)
    [failure] = store.failures(KEY)
    assert failure["kind"] == kind
    assert [line.rpartition(" line ")[2] for line in failure["log"]] == [
        f"{number}" for number in range(10, 30)
    ]


def test_a_cell_that_takes_too_long_is_a_failure(store, monkeypatch):
    def run_cells(*_, **__):
        while True:
            with contextlib.suppress(Exception):  # as code of a benchmark does
                time.sleep(0.01)

    monkeypatch.setattr(work, "build", lambda tree: tree)
    with store.claim(KEY):
        work._attempt(work._limited(run_cells, 0.005), store, KEY, [{}])
    [failure] = store.failures(KEY)
    assert failure["kind"] == "timeout"
    assert "took longer than cell_minutes=0.005" in failure["error"]
    assert store.given_up(KEY)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("stop", [interrupts.Interrupted(15), KeyboardInterrupt(), SystemExit(1)])
def test_an_interruption_is_no_failure(store, monkeypatch, stop):
    for _ in range(10):
        with pytest.raises(type(stop)):
            attempt(store, monkeypatch, stop)
    assert store.failures(KEY) == []
    assert store.claimed(KEY) is None


def test_scores_do_not_fail_by_a_fault_of_the_machine():
    def full(wanted):
        raise error(errno.ENOSPC)

    with pytest.raises(OSError, match="No space"):
        _tried(full, [SimpleNamespace()])


def test_the_first_signal_raises_and_later_ones_do_not():
    def interrupted():
        with interrupts.raised():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)  # cleaning up goes on
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(interrupts.Interrupted) as stop:
        interrupted()
    assert interrupts.told(stop.value) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_somebody_swallows_is_raised_again():
    with interrupts.raised():
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(interrupts.Interrupted):
            interrupts.check()


def test_a_signal_that_comes_in_a_del_is_raised_later_and_says_nothing(capsys):
    class Old:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with interrupts.raised():
        del (old := [Old()])[0]
        assert old == []
        with pytest.raises(interrupts.Interrupted):
            interrupts.check()
    assert capsys.readouterr().err == ""


def test_what_nohup_ignores_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.raised():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


FOLLOWS = """
import sys, time
from pathlib import Path
from ablate import interrupts
from ablate.results import process
leader = process.of_pid(int(sys.argv[1]))
try:
    with interrupts.raised():
        interrupts.follow(leader, Path(sys.argv[2]))
        print("ready", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def test_a_worker_notices_that_its_sweep_is_gone(tmp_path):
    leader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    words = [sys.executable, "-c", FOLLOWS, str(leader.pid), str(tmp_path)]
    worker = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "ready\n"
    leader.kill()  # not waited for: only its exit is left of it
    assert worker.communicate(timeout=300)[0] == "stopped\n"
    leader.wait()


def failures(*texts, kind="error"):
    return [{"kind": kind, "error": text} for text in texts]


def test_failures_are_alike_but_for_numbers():
    assert alike(failures("ValueError: row 3 of 17", "ValueError: row 12 of 17"))
    assert not alike(failures("ValueError: row 3", "KeyError: row 3"))
    assert not alike(failures("step 3: loss is nan", "step 4: loss is nan", kind="diverged"))


def plan(bases=1, others=8):
    cell = {True: SimpleNamespace(is_base=True), False: SimpleNamespace(is_base=False)}
    keys = [f"{number:016x}" for number in range(bases + others)]
    runs = {k: [SimpleNamespace(cell=cell[i < bases])] for i, k in enumerate(keys)}
    return SimpleNamespace(runs=runs), keys


def watched(store, stop_after, *, recorded=0, failed=5):
    """Return a watch that has seen so many runs come to their ends since it began."""
    design, keys = plan()
    watch = Watch()
    watch.stop_after = stop_after
    watch.over(store, design)
    watch._before = None
    watch._look()
    bundle = store.out / "bundle"
    bundle.write_text("{}")
    watch.bundles = {bundle: keys}
    for key in keys[: 1 + recorded]:  # the base first
        (store.folder(key)).mkdir()
        (store.folder(key) / "record.json").write_text("{}")
    for key in keys[1 + recorded : 1 + recorded + failed]:
        store.fail(key, {"kind": "error", "error": f"ValueError: no {key}"})
    watch._look()
    return watch, bundle


def test_a_sweep_stops_where_its_first_runs_all_fail_alike(store):
    watch, bundle = watched(store, 5)
    assert "first 5 runs failed alike: ValueError: no" in watch.stopped
    assert not bundle.exists()  # so no worker begins another cell


def test_a_look_costs_what_is_new_and_not_what_is_there(store, monkeypatch):
    watch, _ = watched(store, None, recorded=3, failed=4)
    shown = []
    monkeypatch.setattr(watch, "show", lambda seen: shown.append((seen.done, seen.failed)))
    asked = collections.Counter()
    for name in ("folder", "given_up"):
        usual = getattr(store, name)
        count = lambda key, name=name, usual=usual: (asked.update([name]), usual(key))[1]  # noqa: E731
        monkeypatch.setattr(store, name, count)
    watch._look()
    assert asked == {}
    keys = list(watch.plan.runs)
    store.fail(keys[8], {"kind": "error", "error": "ValueError"})
    shutil.rmtree(store.cells / keys[0])  # somebody takes a record away
    watch._look()
    assert asked == {"given_up": 1}
    assert shown == [(keys[:4], keys[4:8]), (keys[1:4], keys[4:9])]


@pytest.mark.parametrize(
    ("stop_after", "more"), [(5, {"failed": 4}), (5, {"recorded": 1}), (None, {})]
)
def test_a_sweep_goes_on_where_one_was_trained_or_too_few_failed(store, stop_after, more):
    watch, bundle = watched(store, stop_after, **more)
    assert not watch.stopped
    assert bundle.exists()


def test_a_worker_whose_bundle_is_gone_trains_nothing(store):
    work.work(store.out / "gone.json")


# A worker for the pool that does to itself what the bundle's `do` says, on the first attempt alone.
SCRIPT = """
import json, os, signal, sys, threading, time
from pathlib import Path
orders, answers = os.fdopen(int(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w", buffering=1)
def beat():
    while True:
        answers.write(json.dumps({"beat": True}) + chr(10))
        time.sleep(0.3)
threading.Thread(target=beat, daemon=True).start()
from ablate.results import heart, process
from ablate.results.store import Store
for line in orders:
    content = json.loads(Path(line.strip()).read_text())
    store = Store(Path(content["out"]))
    for key, do in content["runs"].items():
        tried = store.out / f"tried-{key}"
        with store.claim(key, sweep=content["sweep"]) as mine:
            heart.at("step 2 of 3")
            if mine and (not tried.exists() or do == "always"):
                tried.touch()
                if do in ("kill", "always"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if do == "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                if do == "fault":
                    answers.write(json.dumps({"stop": "no space is left"}) + chr(10))
                    sys.exit(3)
                if do == "hang":
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    time.sleep(600)
        (store.out / f"done-{key}").touch()
    answers.write(json.dumps({"done": line.strip()}) + chr(10))
"""


@pytest.fixture
def pooled(store, monkeypatch):
    start = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); sys.argv.pop(1);"
    monkeypatch.setattr(child, "CODE", start + SCRIPT)
    monkeypatch.setenv("ABLATE_LEASE_SECONDS", "6")

    def make(*does):
        paths = []
        for number, do in enumerate(does):
            content = {"out": str(store.out), "sweep": process.here().mark}
            paths.append(store.out / f"bundle-{number}.json")
            paths[-1].write_text(json.dumps(content | {"runs": {f"{number:016x}": do}}))
        return paths

    return make


def done(store):
    return sorted(int(p.name.removeprefix("done-"), 16) for p in store.out.glob("done-*"))


def test_a_killed_worker_costs_no_other_and_its_bundle_is_tried_again(store, pooled):
    pool.launch(pooled("", "kill", "", ""), 2)
    assert done(store) == [0, 1, 2, 3]
    [failure] = store.failures(f"{1:016x}")
    assert failure["error"] == "the worker was killed at step 2 of 3 (SIGKILL)"
    assert list(store.claims.iterdir()) == []


def test_workers_that_only_die_end_the_sweep(store, pooled, monkeypatch):
    monkeypatch.setattr(pool, "MOST_DEATHS", 4)
    with pytest.raises(Halted, match="4 workers died in a row"):
        pool.launch(pooled("always"), 1)


def test_a_worker_that_stands_still_is_replaced_and_that_is_no_attempt(store, pooled):
    pool.launch(pooled("stop", ""), 2)
    assert done(store) == [0, 1]
    assert store.failures(f"{0:016x}") == []


def test_a_fault_that_a_worker_tells_ends_all(store, pooled):
    with pytest.raises(Halted, match="no space is left"):
        pool.launch(pooled("fault", "", "", ""), 1)
    assert done(store) == []


def test_an_interrupted_sweep_ends_workers_that_do_not_listen(store, pooled, monkeypatch):
    monkeypatch.setattr(pool, "LEAVE_SECONDS", 0.5)
    bundles = pooled("hang", "hang")
    own = pool.Pool(bundles, 2)

    def stop():
        while len(list(store.out.glob("tried-*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(interrupts.Interrupted), interrupts.raised():
        own.run()
    assert all(worker.process.returncode is not None for worker in own.workers)
    store.reap_all()
    assert list(store.claims.iterdir()) == []
    assert not store.attempted()


def test_bundles_that_are_gone_end_the_workers(store, pooled, monkeypatch):
    monkeypatch.setattr(pool, "LEAVE_SECONDS", 0.5)
    bundles = pooled("hang", "", "")

    def withdraw():
        while not list(store.out.glob("tried-*")):
            time.sleep(0.05)
        for bundle in bundles:
            bundle.unlink(missing_ok=True)

    threading.Thread(target=withdraw, daemon=True).start()
    pool.launch(bundles, 1)
    assert done(store) == []


PRINTS = """
import sys, time
from ablate.terminal import CONSOLE, unbroken
with unbroken():
    for number in range(2000):
        CONSOLE.print(f"line {number}")
        print("more", file=sys.stderr, flush=True)
open(sys.argv[1], "w").write("went on")
"""


def test_output_that_nobody_reads_ends_nothing(tmp_path):
    shell = '"$0" -c "$1" "$2" 2>&1 | head -n 1; exit ${PIPESTATUS[0]}'
    words = ["bash", "-c", shell, sys.executable, PRINTS, str(tmp_path / "end")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "line 0\n", "")
    assert (tmp_path / "end").read_text() == "went on"


def test_a_sweep_that_halts_says_one_line(capsys):
    with unbroken():
        assert halted(MachineFault("no space\nis left", "results/x")) == 3
    assert capsys.readouterr().err == (
        "ablate: stopped: no space is left (out=results/x); once it is mended the same command "
        "goes on; records are kept\n"
    )
