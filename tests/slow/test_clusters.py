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
CELLS = [
    "dataset=micro", "masking=instruction,none", "plw=0.1", "adapter=lora,mora", "rank=2",
    "seed=0,1,2,3,4,5", "train.lr=1e-3", "train.max_steps=3", "evaluate=none", "report=false",
]  # fmt: skip
RUNS = 24
LONG = [
    "dataset=micro", "masking=none", "plw=0.1", "adapter=lora", "train.lr=1e-3",
    "train.max_steps=1500", "evaluate=none", "report=false",
]  # fmt: skip


def sweep(out, launcher, *more, cells=CELLS):
    command = [sys.executable, "-m", "ablate", "-m", f"hydra/launcher={launcher}", *cells, *more]
    return subprocess.Popen(
        [*command, f"out={out}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process, seconds=1500):
    told, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, told[-3000:]
    return told


def records(out):
    return sorted(path.parent.name for path in (out / "cells").glob("*/record.json"))


def wait_until(condition, process=None, seconds=900):
    """Wait until the condition holds; the sweep's end ends the wait, so that no clock has to."""
    until = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(process.communicate()[0][-3000:])
        assert time.monotonic() < until
        time.sleep(0.2)


def assert_whole(out, runs=RUNS):
    """Each run is recorded once, none failed, and nothing half done is left."""
    found = [json.loads((out / "cells" / key / "record.json").read_text()) for key in records(out)]
    assert len([r for r in found if r["training"]["steps"]]) == runs
    assert not list((out / "claims").iterdir())
    assert not list((out / "bundles").iterdir())


# -- Slurm --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged")) or os.getuid():
        pytest.skip("needs Slurm's packages and root: tests/clusters/slurm.sh install")
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    ports = {"ABLATE_SLURM_PORT": str(17_000 + 3 * (os.getpid() % 1000))}
    before = os.environ.get("SLURM_CONF")
    subprocess.run([SCRIPT, "start", folder], check=True, env=os.environ | ports)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield ["hydra.launcher.n_jobs=3", "hydra.launcher.poll_seconds=0.5"]
    subprocess.run([SCRIPT, "stop", folder], check=True)
    os.environ.pop("SLURM_CONF")
    if before:
        os.environ["SLURM_CONF"] = before


@pytest.fixture(scope="module")
def second(slurm):
    """Return settings by which tasks run on node b, which is as another machine is."""
    if not Path(os.environ["SLURM_CONF"]).with_name("second").exists():
        pytest.skip("needs unshare: node b has no host name and process ids of its own here")
    return ["hydra.launcher.poll_seconds=0.5", "+hydra.launcher.additional_parameters.nodelist=b"]


def slurm_said(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def pilots():
    """Return the processes of pilots that work through bundles."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "ablate.pilots" in (process.info["cmdline"] or []):
            found.append(process)
    return found


def test_slurm_loses_nothing_to_scancel_kill_or_drain(slurm, tmp_path):
    process = sweep(tmp_path, "slurm", *slurm)
    wait_until(lambda: len(records(tmp_path)) > 2, process)
    job = slurm_said("squeue", "-h", "-o", "%F").split()[0]
    slurm_said("scancel", f"{job}_0")
    wait_until(lambda: len(records(tmp_path)) > 5, process)
    for pilot in pilots()[:1]:
        pilot.send_signal(signal.SIGKILL)
    wait_until(lambda: len(records(tmp_path)) > 8, process)
    slurm_said("scontrol", "update", "nodename=b", "state=drain", "reason=test")
    try:
        ended(process)
    finally:
        slurm_said("scontrol", "update", "nodename=b", "state=resume")
    assert_whole(tmp_path)


def test_a_time_limit_queues_the_pilot_again(slurm, tmp_path):
    """Slurm's shortest limit is a minute; what is queued again waits for two: some 8 minutes."""
    limits = ["hydra.launcher.time=1", "hydra.launcher.signal_delay_s=20"]
    settings = [*slurm[1:], "hydra.launcher.n_jobs=1", *limits]
    told = ended(sweep(tmp_path, "slurm", *settings, cells=LONG), seconds=3000)
    logs = "".join(path.read_text() for path in (tmp_path / "slurm").rglob("*_log.*"))
    assert "Requeued" in logs, (told, logs[-2000:])
    assert_whole(tmp_path, runs=1)
    assert resumed(tmp_path), "it began anew instead of going on"


def test_an_interrupted_sweep_takes_its_jobs_back(slurm, tmp_path):
    process = sweep(tmp_path, "slurm", *slurm)
    wait_until(lambda: len(records(tmp_path)) > 1, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGINT
    wait_until(lambda: not slurm_said("squeue", "-h", "-o", "%F").split())
    ended(sweep(tmp_path, "slurm", *slurm))
    assert_whole(tmp_path)


def test_wrong_settings_of_slurm_are_one_line(slurm, tmp_path):
    process = sweep(tmp_path, "slurm", *slurm, "hydra.launcher.partition=none_such")
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "Traceback" not in told
    [line] = [line for line in told.splitlines() if "sbatch" in line]
    assert line.startswith("ablate: hydra/launcher=slurm: sbatch: ")
    assert "invalid partition" in line


def test_without_a_controller_there_is_one_line_and_nothing_is_made(slurm, tmp_path, monkeypatch):
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


def test_what_is_preempted_goes_on_from_its_checkpoint(slurm, tmp_path):
    """A job of a partition that goes before takes the slots; the pilot is queued again."""
    settings = ["hydra.launcher.poll_seconds=0.5", "hydra.launcher.n_jobs=1"]
    settings += ["hydra.launcher.cpus_per_task=2", "execution.checkpoint_minutes=0"]
    settings += ["train.max_steps=60"]
    cells = [word for word in LONG if "max_steps" not in word]
    process = sweep(tmp_path, "slurm", *settings, cells=cells)
    wait_until(lambda: list(tmp_path.glob("checkpoints/*/step-*")), process)
    job, node = slurm_said("squeue", "-h", "-o", "%i %N").split()
    urgent = ["sbatch", "-p", "urgent", "-c", "2", "-w", node, "-o", "/dev/null", "--wrap", "true"]
    slurm_said(*urgent)
    wait_until(lambda: " PREEMPTED" in (shown := state(job)) or " PENDING" in shown, process)
    wait_until(lambda: len(slurm_said("squeue", "-h", "-o", "%i").split()) == 1, process)
    slurm_said("scontrol", "update", f"jobid={job}", "starttime=now")  # else after two minutes
    ended(process)
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


def holders(out):
    """Return the holders of cells that are on node b."""
    found = leases.holders(out / "claims")
    return [one for one in found if one.process.host == "second" and one.sweep]


FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


def test_workers_on_another_machine_stop_when_their_sweep_is_killed(second, tmp_path):
    process = sweep(tmp_path, "slurm", *second, "hydra.launcher.n_jobs=2", cells=LONG)
    wait_until(lambda: holders(tmp_path), process)
    [held] = holders(tmp_path)
    worker = there(held)
    process.kill()
    process.communicate()
    began = time.monotonic()
    wait_until(lambda: not worker.is_running())
    print(f"the worker noticed after {time.monotonic() - began:.0f} s")
    wait_until(lambda: not slurm_said("squeue", "-h", "-o", "%F").split())
    assert not records(tmp_path)[1:]  # the untouched base alone may have been done
    ended(sweep(tmp_path, "slurm", *second, "hydra.launcher.n_jobs=2", cells=LONG))
    assert_whole(tmp_path, runs=1)
    assert not list((tmp_path / "failures").iterdir())


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_what_a_worker_on_another_machine_held_is_taken_over(second, tmp_path, monkeypatch, number):
    """One worker is here and one there, whose clock is an hour ahead where libfaketime is."""
    monkeypatch.setenv("ABLATE_LEASE_SECONDS", "15")
    ahead = f"[ $(hostname) != second ] || export LD_PRELOAD={FAKETIME} FAKETIME=+1h"
    clock = [f'hydra.launcher.setup=["{ahead}"]'] if FAKETIME.exists() else []
    both = ["hydra.launcher.poll_seconds=0.5", "hydra.launcher.n_jobs=2"]
    few = [word for word in CELLS if not word.startswith(("seed", "train.max_steps"))]
    cells = [*few, "seed=0,1", "train.max_steps=60"]
    more = [*both, "hydra.launcher.cpus_per_task=2", *clock]
    process = sweep(tmp_path, "slurm", *more, cells=cells)
    worker = taken_over(process, tmp_path, number)
    with contextlib.suppress(psutil.Error):
        worker.send_signal(signal.SIGCONT)
    ended(process)
    assert_whole(tmp_path, runs=8)
    killed = [json.loads(path.read_text()) for path in (tmp_path / "failures").iterdir()]
    assert [one["kind"] for one in killed] in ([], ["killed"])  # and tried again
    if number == signal.SIGSTOP:
        logs = "".join(path.read_text() for path in (tmp_path / "slurm").rglob("*_log.*"))
        assert "another worker has taken it over; this one gives way" in logs
    made = [
        json.loads((tmp_path / "cells" / k / "record.json").read_text()) for k in records(tmp_path)
    ]
    hosts = {one["provenance"]["hardware"]["host"] for one in made}
    when = [one["provenance"]["finished"] for one in made]
    if clock and "second" in hosts:
        assert max(when) - min(when) > 3000, "the clock there was not ahead"


def taken_over(process, out, number):
    """Signal a worker on node b that trains; return it once another holds its cell."""

    def caught():
        for held in holders(out):
            worker = there(held)
            if worker is None or "step" not in held.place:
                continue
            worker.send_signal(signal.SIGSTOP)  # the cell may have ended meanwhile: look again
            if any((one.key, one.number) == (held.key, held.number) for one in holders(out)):
                found.append((held, worker))
                return True
            worker.send_signal(signal.SIGCONT)
        return False

    found = []
    wait_until(caught, process)
    [(held, worker)] = found
    if number != signal.SIGSTOP:
        worker.send_signal(number)
    mark = held.key, held.number
    held_by = lambda: {(one.key, one.number) for one in leases.holders(out / "claims")}  # noqa: E731
    wait_until(lambda: mark not in held_by(), process)
    return worker


# -- Ray and Parsl ------------------------------------------------------------------------------


def needs(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}")


SMALL = [word for word in CELLS if not word.startswith("seed")] + ["seed=0"]


@needs("ray")
def test_ray_starts_a_cluster_of_its_own(tmp_path):
    ended(sweep(tmp_path, "ray", "hydra.launcher.n_jobs=2", cells=SMALL))
    assert_whole(tmp_path, runs=4)


@needs("ray")
def test_ray_joins_a_cluster_of_two_nodes_and_survives_a_killed_pilot(tmp_path, monkeypatch):
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
        for pilot in pilots()[:1]:
            pilot.send_signal(signal.SIGKILL)
        ended(process)
    finally:
        subprocess.run([*ray, "stop", "--force"], check=True)
    assert_whole(tmp_path)


@needs("ray")
def test_no_cluster_at_the_address_is_one_line(tmp_path):
    process = sweep(tmp_path, "ray", "hydra.launcher.address=127.0.0.1:1", cells=SMALL)
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "hydra.launcher.address=127.0.0.1:1" in told.splitlines()[-1]


@needs("parsl")
def test_parsl_works_through_a_sweep(tmp_path):
    ended(sweep(tmp_path, "parsl", "hydra.launcher.n_jobs=2", cells=SMALL))
    assert_whole(tmp_path, runs=4)
