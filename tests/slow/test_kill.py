"""SIGKILL at any moment, then the same command: the records of an undisturbed sweep.

Each trial kills a worker or the whole process group at a random moment between start and end, as
often as it takes, and lets the last command finish.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest

pytestmark = pytest.mark.slow

GRID = [
    "masking=instruction,none", "plw=0.1", "adapter=lora,mora", "rank=2", "seed=0,1",
    "train.lr=1e-3", "train.max_steps=30", "evaluate=none", "evaluate.tasks=[micro_questions]",
    "evaluate.limit=40", "report=false",
]  # fmt: skip
NOISE = ("costs", "provenance", "seal")  # time, host and process, and hashes of these


def start(out):
    command = [sys.executable, "-m", "ablate", "-m", *GRID, f"out={out}"]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(out):
    process = start(out)
    _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told.decode()[-2000:]


def records(out):
    found = {}
    for folder in sorted((out / "cells").iterdir()):
        record = json.loads((folder / "record.json").read_text())
        kept = {k: v for k, v in record.items() if k not in NOISE}
        items = pd.read_parquet(folder / "items.parquet")
        history = pd.read_parquet(folder / "history.parquet")
        found[folder.name] = (kept, items, history)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    finish(out)
    return records(out), time.monotonic() - started


def kill_worker(process):
    children = psutil.Process(process.pid).children(recursive=True)
    busy = [c for c in children if "ablate.worker" in " ".join(c.cmdline())]
    if busy:
        random.choice(busy).kill()


def kill_all(process):
    os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("seed", range(3))
def test_killed_sweeps_end_with_the_records_of_an_undisturbed_one(undisturbed, tmp_path, seed):
    expected, seconds = undisturbed
    random.seed(seed)
    for kill in random.sample([kill_all, kill_all, kill_worker], k=3):
        process = start(tmp_path)
        moment = time.monotonic() + random.uniform(0.1, 0.9) * seconds
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.05)
        if process.poll() is None:
            kill(process)
            if kill is kill_all:
                process.wait()
            else:  # the sweep goes on without the worker; the command still ends well
                assert process.wait(timeout=400) == 0
        process.stderr.close()
        # What lies there half-way is whole: no record without its files.
        for folder in (tmp_path / "cells").glob("[!.]*"):
            assert (folder / "record.json").exists()
    finish(tmp_path)
    found = records(tmp_path)
    assert found.keys() == expected.keys()
    for key, (record, items, history) in expected.items():
        assert found[key][0] == record
        pd.testing.assert_frame_equal(found[key][1], items)
        pd.testing.assert_frame_equal(found[key][2], history)


def test_two_sweeps_on_one_folder_share_the_work(undisturbed, tmp_path):
    expected, _ = undisturbed
    first, second = start(tmp_path), start(tmp_path)
    for process in (first, second):
        _, told = process.communicate(timeout=400)
        assert process.returncode == 0, told.decode()[-2000:]
    found = records(tmp_path)
    assert found.keys() == expected.keys()
    for key, (record, items, _) in expected.items():
        assert found[key][0] == record
        pd.testing.assert_frame_equal(found[key][1], items)
    assert not list((tmp_path / "failures").glob("*.json"))
