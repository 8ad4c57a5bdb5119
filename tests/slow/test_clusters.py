"""Sweeps by pilots on real engines: Slurm, Ray and Parsl, each where it is installed.

docs/clusters.md says how to install them. Slurm is started by `tests/clusters/slurm.sh`, as root.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "clusters" / "slurm.sh"
CELLS = [
    "dataset=micro", "masking=instruction,none", "plw=0.1", "adapter=lora,mora", "rank=2",
    "seed=0,1,2,3,4,5", "train.lr=1e-3", "train.max_steps=3", "evaluate=none", "report=false",
]  # fmt: skip
RUNS = 24


def sweep(out, launcher, *more, cells=CELLS):
    command = [sys.executable, "-m", "ablate", "-m", f"hydra/launcher={launcher}", *cells, *more]
    return subprocess.Popen(
        [*command, f"out={out}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process, seconds=500):
    told, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, told[-3000:]
    return told


def records(out):
    return sorted(path.parent.name for path in (out / "cells").glob("*/record.json"))


def wait_until(condition, seconds=300):
    until = time.monotonic() + seconds
    while not condition():
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
    before = os.environ.get("SLURM_CONF")
    subprocess.run([SCRIPT, "start", folder], check=True)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield ["hydra.launcher.n_jobs=3", "hydra.launcher.poll_seconds=0.5"]
    subprocess.run([SCRIPT, "stop", folder], check=True)
    os.environ.pop("SLURM_CONF")
    if before:
        os.environ["SLURM_CONF"] = before


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
    wait_until(lambda: len(records(tmp_path)) > 2)
    job = slurm_said("squeue", "-h", "-o", "%F").split()[0]
    slurm_said("scancel", f"{job}_0")
    wait_until(lambda: len(records(tmp_path)) > 5)
    for pilot in pilots()[:1]:
        pilot.send_signal(signal.SIGKILL)
    wait_until(lambda: len(records(tmp_path)) > 8)
    slurm_said("scontrol", "update", "nodename=b", "state=drain", "reason=test")
    try:
        ended(process)
    finally:
        slurm_said("scontrol", "update", "nodename=b", "state=resume")
    assert_whole(tmp_path)


def test_a_time_limit_queues_the_pilot_again(slurm, tmp_path):
    """Slurm's shortest limit is a minute; what is queued again waits for two: some 8 minutes."""
    cells = ["dataset=micro", "masking=none", "plw=0.1", "adapter=lora", "train.lr=1e-3",
             "train.max_steps=1500", "evaluate=none", "report=false"]  # fmt: skip
    limits = ["hydra.launcher.time=1", "hydra.launcher.signal_delay_s=20"]
    settings = [*slurm[1:], "hydra.launcher.n_jobs=1", *limits]
    told = ended(sweep(tmp_path, "slurm", *settings, cells=cells), seconds=1500)
    logs = "".join(path.read_text() for path in (tmp_path / "slurm").rglob("*_log.*"))
    assert "Requeued" in logs, (told, logs[-2000:])
    assert_whole(tmp_path, runs=1)
    (key,) = [k for k in records(tmp_path) if (tmp_path / "cells" / k / "weights").exists()]
    record = json.loads((tmp_path / "cells" / key / "record.json").read_text())
    assert record["provenance"]["resumed"], "it began anew instead of going on"


def test_an_interrupted_sweep_takes_its_jobs_back(slurm, tmp_path):
    process = sweep(tmp_path, "slurm", *slurm)
    wait_until(lambda: len(records(tmp_path)) > 1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    wait_until(lambda: not slurm_said("squeue", "-h", "-o", "%F").split(), 60)
    ended(sweep(tmp_path, "slurm", *slurm))
    assert_whole(tmp_path)


def test_wrong_settings_of_slurm_are_one_line(slurm, tmp_path):
    process = sweep(tmp_path, "slurm", *slurm, "hydra.launcher.partition=none_such")
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "hydra/launcher=slurm" in told
    assert "Traceback" not in told


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
        wait_until(lambda: len(records(tmp_path)) > 3)
        for pilot in pilots()[:1]:
            pilot.send_signal(signal.SIGKILL)
        ended(process)
    finally:
        subprocess.run([*ray, "stop", "--force"], check=True)
    assert_whole(tmp_path)


@needs("ray")
def test_no_cluster_at_the_address_is_one_line(tmp_path):
    process = sweep(tmp_path, "ray", "hydra.launcher.address=127.0.0.1:1", cells=SMALL)
    told, _ = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "hydra.launcher.address=127.0.0.1:1" in told.splitlines()[-1]


@needs("parsl")
def test_parsl_works_through_a_sweep(tmp_path):
    ended(sweep(tmp_path, "parsl", "hydra.launcher.n_jobs=2", cells=SMALL))
    assert_whole(tmp_path, runs=4)
