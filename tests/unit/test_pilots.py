"""Pilots of a cluster: which bundles one takes, how Slurm is asked, and what a fault comes to.

Slurm's commands are scripts here that answer as Slurm 22.05 does; the real ones are run by
`tests/slow/test_clusters.py`.
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

from ablate import cli
from ablate.errors import Halted, UserError
from ablate.experiment.trackers import Trackers
from ablate.machine import MachineFault
from ablate.pilots import __main__ as process
from ablate.pilots import pilot, slurm
from ablate.results import heart, leases
from ablate.results.process import Process, here
from ablate.results.store import Store
from ablate.work import work

SBATCH = """
echo "$@" >> $LOG
count=$(ls $STATE | wc -l)
touch $STATE/$((7 + count))
echo "Submitted batch job $((7 + count))"
"""
SQUEUE = """
if [ -e $STATE/../away ]; then rm $STATE/../away; echo "slurm_load_jobs error: down" >&2; exit 1; fi
ls $STATE
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Return the folder whose files are the jobs in the queue."""
    pytest.importorskip("submitit")
    jobs, programs = tmp_path / "jobs", tmp_path / "bin"
    jobs.mkdir()
    programs.mkdir()
    scripts = {
        "sbatch": SBATCH,
        "squeue": SQUEUE,
        "scancel": 'for job in "$@"; do [[ $job == -* ]] || rm $STATE/$job; done',
        "scontrol": 'echo "MaxArraySize            = 4"',
        "srun": "",  # submitit asks whether it is there
    }
    for name, text in scripts.items():
        path = programs / name
        path.write_text(f"#!/bin/bash\nSTATE={jobs}\nLOG={tmp_path}/log\n{text}")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return jobs


@pytest.fixture
def order(tmp_path):
    folder = tmp_path / "out" / "bundles"
    folder.mkdir(parents=True)
    bundles = [folder / f"{number}.json" for number in range(5)]
    for bundle in bundles:
        bundle.touch()
    path = folder / "pilots.list"
    path.write_text("\n".join(map(str, bundles)))
    return path


# -- a pilot's way through the bundles ----------------------------------------------------------


@pytest.mark.parametrize(("number", "expected"), [(0, "01234"), (1, "23401")])
def test_a_pilot_begins_at_its_part_and_goes_once_through_all(order, monkeypatch, number, expected):
    seen = []
    monkeypatch.setattr("ablate.work.work", lambda bundle: bool(seen.append(bundle.stem)) or True)
    assert process.main(order, number, 2) == 0
    assert "".join(seen) == expected
    assert not list(order.parent.glob("*.json"))


@pytest.fixture
def held(order, monkeypatch):
    """Return the lease of a process elsewhere on the cell of bundle 3, whose counter stands."""
    monkeypatch.setenv("ABLATE_LEASE_SECONDS", "1.2")
    store = Store(order.parent.parent)
    store.prepare()
    elsewhere = Process("second", "0" * 12, 7, "1")
    with monkeypatch.context() as patch:
        patch.setattr(leases, "here", lambda: elsewhere)
        lease = leases.take(store.claims, "cell")

    def work(bundle):
        with store.claim("cell") if bundle.stem == "3" else contextlib.nullcontext(True) as mine:
            return mine

    monkeypatch.setattr("ablate.work.work", work)
    return lease


def test_a_bundle_that_others_work_on_stays(order, held):
    """However long they work: a pilot that has nothing left ends, and leaves its slot to others."""
    ended = threading.Event()

    def beat():
        while not ended.wait(0.02):
            held.write(beat=True)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        assert process.main(order, 0, 1) == 0
    finally:
        ended.set()
        thread.join()
    assert [path.stem for path in order.parent.glob("*.json")] == ["3"]
    assert held.held()


def test_a_pilot_takes_over_what_a_dead_worker_elsewhere_held(order, held):
    assert process.main(order, 0, 1) == 0
    assert not list(order.parent.glob("*.json"))
    assert not held.held()


@pytest.mark.parametrize("taken_over", [False, True])
def test_the_bundle_of_a_worker_that_gave_way_is_not_done(order, monkeypatch, taken_over):
    """Else the sweep takes all for done, and cancels the job that has taken the cell over."""
    store, bundle = Store(order.parent.parent), order.with_name("0.json")
    store.prepare()
    content = {"sweep": here().plain(), "here": str(order.parent), "out": str(store.out), "gpu": 0}
    content |= {"devices": 1, "minutes": None, "beside": False, "runs": {"cell": [], "next": []}}
    content |= {"trackers": Trackers().plain()}
    bundle.write_text(json.dumps(content))
    tried = []

    def run_cells(cells, key, store, beside):
        tried.append(key)
        if taken_over and key == "cell":
            leases.take(store.claims, key, over=leases.holder(store.claims, key)).release()
        heart.check(store.claims, key)

    monkeypatch.setattr("ablate.run.run_cells", run_cells)
    assert work(bundle) is not taken_over
    assert tried == ["cell", "next"]


def test_a_fault_of_a_pilots_machine_stops_the_sweep_in_its_words(order, monkeypatch):
    bundles = [order.with_name(f"{number}.json") for number in range(5)]

    def fails(bundle):
        raise MachineFault("no space left on device")

    def run(path, count, settings):
        assert (count, settings) == (3, {"a": 1})
        assert process.main(path, 0, count) == 3

    monkeypatch.setattr("ablate.work.work", fails)
    monkeypatch.setattr(slurm, "run", run)
    with pytest.raises(Halted, match="no space left"):
        pilot.launch("slurm", bundles, 3, {"a": 1})
    assert sorted(path.name for path in order.parent.iterdir()) == sorted(
        [*(bundle.name for bundle in bundles), order.name]
    )


def test_a_stopped_pilot_ends_its_child():
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    one = pilot.Pilot()
    one._child = subprocess.Popen(slow)
    one.stop()
    assert one._child.wait() == -signal.SIGTERM
    assert pickle.loads(pickle.dumps(one))._child is None


def test_a_signal_handler_stops_the_child_that_the_task_waits_for(tmp_path, monkeypatch):
    """As submitit does before a time limit: the handler runs inside the task's own wait."""
    program = tmp_path / "python"
    program.write_text("#!/bin/bash\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    one = pilot.Pilot()
    before = signal.signal(signal.SIGALRM, lambda *_: one.stop())
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        assert one("order", 0, 1) == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGALRM, before)


# -- Slurm ----------------------------------------------------------------------------------------


def test_more_tasks_than_an_array_may_have_are_several_arrays(order, commands):
    assert slurm.submit(order, 7, {"time": 5, "partition": "main"}) == {"7", "8", "9"}
    scripts = sorted((order.parent.parent / "slurm").rglob("*_submission.sh"))
    texts = [path.read_text() for path in scripts]
    assert sum("--array=0-2%" in text for text in texts) == 2
    assert all("--partition=main" in text and "--time=5" in text for text in texts)


def test_a_controller_that_is_away_for_a_moment_ends_no_job(order, commands, capfd):
    (commands.parent / "away").touch()
    (commands / "7").touch()
    ended = subprocess.Popen(["bash", "-c", f"sleep 1; rm {commands}/7"])
    started = time.monotonic()
    slurm._wait({"7"}, 0.05, [order])
    assert time.monotonic() - started > 0.5
    ended.wait()
    assert "squeue: slurm_load_jobs error: down" in capfd.readouterr().err


def test_an_interrupted_sweep_cancels_its_jobs_alone(order, commands, monkeypatch):
    (commands / "1").touch()
    monkeypatch.setattr(slurm, "_wait", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        slurm.run(order, 3, {"time": 5, "partition": None, "poll_seconds": 1.0})
    assert [path.name for path in commands.iterdir()] == ["1"]


def test_jobs_that_have_nothing_left_are_not_waited_for(order, commands, monkeypatch):
    """A task may be suspended, or wait in the queue, while others do all."""
    for bundle in order.parent.glob("*.json"):
        bundle.unlink()
    slurm.run(order, 3, {"time": 5, "poll_seconds": 0.01})
    assert not list(commands.iterdir())


def test_where_slurm_is_not_is_one_line(order, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"^hydra/launcher=slurm: there is no sbatch"):
        slurm.run(order, 1, {"time": 5})


@pytest.mark.parametrize("engine", ["ray", "parsl"])
def test_an_engine_that_is_not_installed_is_one_line(order, monkeypatch, engine):
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(UserError, match=rf"pip install 'ablate\[{engine}\]'"):
        pilot.launch(engine, [order.with_name("0.json")], 1, {"provider": "local", "address": None})


def test_an_engine_that_is_not_installed_is_told_before_anything_is_made(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["dataset=micro", "masking=none", "plw=0.1", "evaluate=none", "report=false"]
    out = tmp_path / "out"
    assert cli.main(["sweep", "hydra/launcher=ray", *words, f"out={out}"]) == 2
    assert "pip install 'ablate[ray]'" in capsys.readouterr().err
    assert not (out / "cells").exists()
