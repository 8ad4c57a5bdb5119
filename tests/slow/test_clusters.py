"""Sweeps by pilots on real engines: Slurm, Ray and Parsl, each where it is installed.

docs/clusters.md says how to install them. Slurm is started by `tests/clusters/slurm.sh`, as root.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ablate.results import leases

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "clusters" / "slurm.sh"
GATE = SCRIPT.with_name("gate")
CELLS = [
    "dataset=micro", "masking=instruction,none", "plw=0.1", "adapter=lora,mora", "rank=2",
    "seed=0,1,2,3,4,5", "train.lr=1e-3", "train.max_steps=3", "evaluate=none", "report=false",
]  # fmt: skip
RUNS = 24
ONE = [
    "dataset=micro", "masking=none", "plw=0.1", "adapter=lora", "train.lr=1e-3",
    "train.max_steps=6", "evaluate=none", "report=false",
]  # fmt: skip


@pytest.fixture
def sweep():
    """Return a function that starts a sweep; what it started ends with the test, failed or not."""
    started = []

    def start(out, launcher, *more, cells=CELLS):
        command = [sys.executable, "-m", "ablate", "-m", f"hydra/launcher={launcher}", *cells]
        process = subprocess.Popen(
            [*command, *more, f"out={out}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:  # waits for it, and closes its pipes
            process.kill()


@pytest.fixture
def gate(tmp_path_factory, monkeypatch):
    """Return a folder whose files say which cells train on: see tests/clusters/gate."""
    folder = tmp_path_factory.mktemp("gate")
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(GATE), *([before] if before else [])]))
    monkeypatch.setenv("ABLATE_TEST_GATE", str(folder))
    return folder


def ended(process, seconds=1500):
    told, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, told[-3000:]
    return told


def records(out):
    return sorted(path.parent.name for path in (out / "cells").glob("*/record.json"))


def wait_until(condition, process=None, seconds=900):
    """Return what the condition gives once it holds; the sweep's end ends the wait, not a clock."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(process.communicate()[0][-3000:])
        assert time.monotonic() < until
        time.sleep(0.2)
    return found


def assert_whole(out, runs=RUNS):
    """Each run is recorded once, none failed, and nothing half done is left."""
    found = [json.loads((out / "cells" / key / "record.json").read_text()) for key in records(out)]
    assert len([r for r in found if r["training"]["steps"]]) == runs
    assert not list((out / "claims").iterdir())
    assert not list((out / "bundles").iterdir())


# -- Slurm --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def controller(tmp_path_factory):
    if not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged")) or os.getuid():
        pytest.skip("needs Slurm's packages and root: tests/clusters/slurm.sh install")
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    ports = {"ABLATE_SLURM_PORT": str(17_000 + 3 * (os.getpid() % 1000))}
    before = os.environ.get("SLURM_CONF")
    subprocess.run([SCRIPT, "start", folder], check=True, env=os.environ | ports)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield
    subprocess.run([SCRIPT, "stop", folder], check=True)
    os.environ.pop("SLURM_CONF")
    if before:
        os.environ["SLURM_CONF"] = before


@pytest.fixture
def slurm(controller):
    """Return a launcher's settings; no job is left behind by a test, failed or not."""
    yield ["hydra.launcher.n_jobs=3", "hydra.launcher.poll_seconds=0.5"]
    if in_queue():
        slurm_said("scancel", "--user=root")
        wait_until(lambda: not in_queue(), seconds=120)


@pytest.fixture
def second(slurm):
    """Return settings by which tasks run on node b, which is as another machine is."""
    if not Path(os.environ["SLURM_CONF"]).with_name("second").exists():
        pytest.skip("needs unshare: node b has no host name and process ids of its own here")
    return ["hydra.launcher.poll_seconds=0.5", "+hydra.launcher.additional_parameters.nodelist=b"]


def slurm_said(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def in_queue():
    """Return the numbers of the jobs that are queued or run."""
    return slurm_said("squeue", "-h", "-o", "%F").split()


def logs(out):
    return "".join(path.read_text() for path in (out / "slurm").rglob("*_log.*"))


def pilots(out):
    """Return the processes of pilots that work through bundles under `out`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "ablate.pilots" in words and any(word.startswith(f"{out}/") for word in words):
            found.append(process)
    return found


def test_slurm_loses_nothing_to_scancel_kill_or_drain(slurm, sweep, tmp_path):
    process = sweep(tmp_path, "slurm", *slurm)
    wait_until(lambda: len(records(tmp_path)) > 2, process)
    job = in_queue()[0]
    slurm_said("scancel", f"{job}_0")
    wait_until(lambda: len(records(tmp_path)) > 5, process)
    for pilot in pilots(tmp_path)[:1]:
        pilot.send_signal(signal.SIGKILL)
    wait_until(lambda: len(records(tmp_path)) > 8, process)
    slurm_said("scontrol", "update", "nodename=b", "state=drain", "reason=test")
    try:
        ended(process)
    finally:
        slurm_said("scontrol", "update", "nodename=b", "state=resume")
    assert_whole(tmp_path)


def test_a_time_limit_queues_the_pilot_again(slurm, sweep, gate, tmp_path):
    """The limit is lowered while the cell waits at a step: a worker may take any time to start."""
    limits = ["hydra.launcher.time=10", "hydra.launcher.signal_delay_s=20"]
    settings = [*slurm[1:], "hydra.launcher.n_jobs=1", *limits]
    process = sweep(tmp_path, "slurm", *settings, cells=ONE)
    wait_until(lambda: trains(tmp_path), process)
    job, used = slurm_said("squeue", "-h", "-o", "%i %M").split()
    minutes, seconds = map(int, used.split(":"))
    later = minutes + (2 if seconds > 20 else 1)  # so that some of the warning's seconds are left
    slurm_said("scontrol", "update", f"jobid={job}", f"timelimit={later}")
    wait_until(lambda: "Requeued" in logs(tmp_path), process)
    assert "timed-out" in logs(tmp_path)
    go_on(process, gate)
    assert_whole(tmp_path, runs=1)
    assert resumed(tmp_path), "it began anew instead of going on"


def go_on(process, gate):
    """Let the one job that was queued again start at once, not after two minutes, and end."""
    wait_until(lambda: slurm_said("squeue", "-h", "-o", "%T").split() == ["PENDING"], process)
    (gate / "all").touch()
    [job] = slurm_said("squeue", "-h", "-o", "%i").split()
    slurm_said("scontrol", "update", f"jobid={job}", "starttime=now", "timelimit=60")
    ended(process)


def test_an_interrupted_sweep_takes_its_jobs_back(slurm, sweep, tmp_path):
    process = sweep(tmp_path, "slurm", *slurm)
    wait_until(lambda: len(records(tmp_path)) > 1, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGINT
    wait_until(lambda: not in_queue())
    ended(sweep(tmp_path, "slurm", *slurm))
    assert_whole(tmp_path)


def test_wrong_settings_of_slurm_are_one_line(slurm, sweep, tmp_path):
    process = sweep(tmp_path, "slurm", *slurm, "hydra.launcher.partition=none_such")
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "Traceback" not in told
    [line] = [line for line in told.splitlines() if "sbatch" in line]
    assert line.startswith("ablate: hydra/launcher=slurm: sbatch: ")
    assert "invalid partition" in line


def test_without_a_controller_there_is_one_line_and_nothing_is_made(
    slurm, sweep, tmp_path, monkeypatch
):
    settings = tmp_path / "slurm.conf"
    text = Path(os.environ["SLURM_CONF"]).read_text()
    settings.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", text))
    monkeypatch.setenv("SLURM_CONF", str(settings))
    process = sweep(tmp_path / "out", "slurm", *slurm)
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    [line] = told.splitlines()
    assert "hydra/launcher=slurm: no controller of Slurm answers" in line
    assert not (tmp_path / "out").exists()


def test_what_is_preempted_goes_on_from_its_checkpoint(slurm, sweep, gate, tmp_path):
    """A job of a partition that goes before takes the slots; the pilot is queued again."""
    settings = ["hydra.launcher.poll_seconds=0.5", "hydra.launcher.n_jobs=1"]
    settings += ["hydra.launcher.cpus_per_task=2", "execution.checkpoint_minutes=0"]
    process = sweep(tmp_path, "slurm", *settings, cells=ONE)
    wait_until(lambda: list(tmp_path.glob("checkpoints/*/step-*")), process)
    job, node = slurm_said("squeue", "-h", "-o", "%i %N").split()
    urgent = ["sbatch", "-p", "urgent", "-c", "2", "-w", node, "-o", "/dev/null", "--wrap", "true"]
    slurm_said(*urgent)
    wait_until(lambda: " PREEMPTED" in (shown := state(job)) or " PENDING" in shown, process)
    go_on(process, gate)
    assert_whole(tmp_path, runs=1)
    assert resumed(tmp_path), "it began anew instead of going on"


def state(job):
    return " " + slurm_said("squeue", "-h", "-j", job, "-o", "%T")


def resumed(out):
    """Return after which steps the trained cell went on from a checkpoint."""
    found = [json.loads((out / "cells" / key / "record.json").read_text()) for key in records(out)]
    [one] = [record for record in found if record["training"]["steps"]]
    return one["provenance"]["resumed"]


# -- Another machine ------------------------------------------------------------------------------


def there(held):
    """Return the process of a holder on node b: here it has another number than there."""
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            status = Path(f"/proc/{process.pid}/status").read_text()
            numbers = re.search(r"NSpid:(.*)", status)[1].split()
            if len(numbers) > 1 and int(numbers[-1]) == held.process.pid:
                return process
    return None


def trains(out, *, second=False):
    """Return the holders of cells that are at a step of training, of node b alone if asked."""
    found = [one for one in leases.holders(out / "claims") if one.place.startswith("step ")]
    return [one for one in found if not second or one.process.host == "second"]


FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


def test_workers_on_another_machine_stop_when_their_sweep_is_killed(second, sweep, gate, tmp_path):
    process = sweep(tmp_path, "slurm", *second, "hydra.launcher.n_jobs=2", cells=ONE)
    [held] = wait_until(lambda: trains(tmp_path, second=True), process)
    worker = there(held)
    process.kill()
    process.communicate()
    began = time.monotonic()
    wait_until(lambda: not worker.is_running())
    print(f"the worker noticed after {time.monotonic() - began:.0f} s")
    wait_until(lambda: not in_queue())
    assert not records(tmp_path)[1:]  # the untouched base alone may have been done
    (gate / "all").touch()
    ended(sweep(tmp_path, "slurm", *second, "hydra.launcher.n_jobs=2", cells=ONE))
    assert_whole(tmp_path, runs=1)
    assert resumed(tmp_path), "it stopped without a checkpoint"
    assert not list((tmp_path / "failures").iterdir())


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_what_a_worker_on_another_machine_held_is_taken_over(
    second, sweep, gate, tmp_path, monkeypatch, number
):
    """One worker is here and one there, whose clock is an hour ahead where libfaketime is.

    Both wait at a step of their first cell. The one there does that cell and is caught in the next;
    then the one here does all others and what the first held.
    """
    monkeypatch.setenv("ABLATE_LEASE_SECONDS", "15")
    ahead = f"[ $(hostname) != second ] || export LD_PRELOAD={FAKETIME} FAKETIME=+1h"
    clock = [f'hydra.launcher.setup=["{ahead}"]'] if FAKETIME.exists() else []
    both = ["hydra.launcher.poll_seconds=0.5", "hydra.launcher.n_jobs=2"]
    few = [word for word in CELLS if not word.startswith(("seed", "train.max_steps"))]
    cells = [*few, "seed=0,1", "train.max_steps=6"]
    more = [*both, "hydra.launcher.cpus_per_task=2", *clock]
    process = sweep(tmp_path, "slurm", *more, cells=cells)
    held = caught(process, tmp_path, gate)
    worker = there(held)
    worker.send_signal(number)
    (gate / f"{held.key}.shut").touch()
    (gate / "all").touch()
    others = lambda: [one.key for one in trains(tmp_path) if one.process != held.process]  # noqa: E731
    wait_until(lambda: others() == [held.key], process)
    if number == signal.SIGSTOP:
        worker.send_signal(signal.SIGCONT)
        gives_way = f"{held.key}: another worker has taken it over; this one gives way"
        wait_until(lambda: gives_way in logs(tmp_path), process)
    (gate / f"{held.key}.shut").unlink()
    ended(process)
    assert_whole(tmp_path, runs=8)
    killed = [json.loads(path.read_text()) for path in (tmp_path / "failures").iterdir()]
    assert [one["kind"] for one in killed] in ([], ["killed"])  # and tried again
    made = [
        json.loads((tmp_path / "cells" / k / "record.json").read_text()) for k in records(tmp_path)
    ]
    by = {one["train_key"]: one["provenance"] for one in made}
    assert by[held.key]["hardware"]["host"] != "second"
    there_too = [one for one in by.values() if one["hardware"]["host"] == "second"]
    assert there_too
    when = [one["finished"] for one in by.values()]
    assert not clock or max(when) - min(when) > 3000, "the clock there was not ahead"


def caught(process, out, gate):
    """Return the holder on node b that waits at a step of a cell, once it has trained another."""
    [first] = wait_until(lambda: trains(out, second=True), process)
    (gate / first.key).touch()
    later = lambda: [one for one in trains(out, second=True) if one.key != first.key]  # noqa: E731
    [held] = wait_until(later, process)
    return held


# -- Ray and Parsl ------------------------------------------------------------------------------


def needs(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}")


SMALL = [word for word in CELLS if not word.startswith("seed")] + ["seed=0"]


@needs("ray")
def test_ray_starts_a_cluster_of_its_own(sweep, tmp_path):
    ended(sweep(tmp_path, "ray", "hydra.launcher.n_jobs=2", cells=SMALL))
    assert_whole(tmp_path, runs=4)


@needs("ray")
def test_ray_joins_a_cluster_of_two_nodes_and_survives_a_killed_pilot(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    port = str(20_000 + os.getpid() % 20_000)
    where = f"127.0.0.1:{port}"
    plain = {"num-cpus": "1", "disable-usage-stats": None}
    words = [w for k, v in plain.items() for w in ([f"--{k}"] if v is None else [f"--{k}={v}"])]
    subprocess.run([*ray, "start", "--head", f"--port={port}", *words], check=True)
    try:
        subprocess.run([*ray, "start", f"--address={where}", *words], check=True)
        more = [f"hydra.launcher.address={where}", "hydra.launcher.n_jobs=2"]
        process = sweep(tmp_path, "ray", *more)
        wait_until(lambda: len(records(tmp_path)) > 3, process)
        for pilot in pilots(tmp_path)[:1]:
            pilot.send_signal(signal.SIGKILL)
        ended(process)
    finally:
        subprocess.run([*ray, "stop", "--force"], check=True)
    assert_whole(tmp_path)


@needs("ray")
def test_no_cluster_at_the_address_is_one_line(sweep, tmp_path):
    process = sweep(tmp_path, "ray", "hydra.launcher.address=127.0.0.1:1", cells=SMALL)
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "hydra.launcher.address=127.0.0.1:1" in told.splitlines()[-1]


@needs("parsl")
def test_parsl_works_through_a_sweep(sweep, tmp_path):
    ended(sweep(tmp_path, "parsl", "hydra.launcher.n_jobs=2", cells=SMALL))
    assert_whole(tmp_path, runs=4)
