"""A cell on two devices as a user runs it: its record, failures, signals, what is left behind."""

import json
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file

from ablate import group
from ablate.experiment.request import plan_grid
from ablate.results import heart
from ablate.results.store import Store
from ablate.run import run_cells

pytestmark = pytest.mark.slow

ASKED = (
    "adapter=lora", "rank=2", "train.lr=1e-3", "train.max_steps=20", "train.batch_size=7",
    "evaluate.tasks=[micro_questions,micro_translation]", "evaluate.limit=30",
    "evaluate.heldout_rows=40", "report=false",
)  # fmt: skip
ONE = ("execution.device=cpu",)
TWO = (*ONE, "execution.devices=2")
WAIT = 300.0  # seconds, for what takes a few where nothing else runs


@pytest.fixture(autouse=True)
def _no_members_left():
    yield
    group.close()
    assert members() == []


def members(of=None):
    """The processes of cells on several devices that `of` started, or this process."""
    children = psutil.Process(of).children(recursive=True)
    return [c for c in children if "ablate.member" in " ".join(_words(c))]


def _words(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def carried_out(out, *further):
    """Carry out a cell in this process and return the folder of its record, and its key."""
    store, cells = Store(out), plan_grid([*ASKED, *further, f"out={out}"]).design.cells
    (named,) = (one for one in cells if not one.cell.is_base)
    store.prepare()
    run_cells([named.cell], named.key, store)
    return store.folder(named.key)


def record(folder):
    return json.loads((folder / "record.json").read_text())


def same(one, other):
    """Compare two records: weights and losses to 1e-5, scores, and answers exactly."""
    assert record(one)["train_key"] == record(other)["train_key"]
    a, b = (pd.read_parquet(folder / "history.parquet") for folder in (one, other))
    assert len(a) == 20
    pd.testing.assert_frame_equal(a, b, rtol=1e-5, atol=1e-5)
    stored, others = (load_file(next((f / "weights").glob("*.safetensors"))) for f in (one, other))
    assert stored.keys() == others.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, others[name], rtol=0, atol=1e-5)
    scores, expected = (record(folder)["scores"] for folder in (one, other))
    assert [(s["task"], s["metric"], s["n"]) for s in scores] == [
        (s["task"], s["metric"], s["n"]) for s in expected
    ]
    assert not record(one)["unscored"]
    for score, known in zip(scores, expected, strict=True):
        assert score["value"] == pytest.approx(known["value"], rel=1e-4, abs=1e-5)
    items, known = (pd.read_parquet(folder / "items.parquet") for folder in (one, other))
    columns = ["task", "metric", "doc_id", "prompt_hash", "gold", "output"]
    pd.testing.assert_frame_equal(items[columns], known[columns])
    pairs = zip(items["loglikelihoods"], known["loglikelihoods"], strict=True)
    for found, expected in pairs:
        if found is not None:
            assert list(found) == pytest.approx(list(expected), rel=1e-5, abs=1e-4)


def test_a_cell_on_two_devices_is_recorded_as_on_one(tmp_path):
    one = carried_out(tmp_path / "one", *ONE)
    two = carried_out(tmp_path / "two", *TWO)
    first = members()
    same(two, one)
    full = carried_out(tmp_path / "full", *TWO, "execution.sharding=full")
    assert {m.pid for m in members()} == {m.pid for m in first}  # they stay for the next cell
    same(full, one)
    whole = ("adapter=full", "execution.keep_weights_mb=500")
    weights = carried_out(tmp_path / "whole", *TWO, *whole, "execution.sharding=full") / "weights"
    alone = carried_out(tmp_path / "alone", *ONE, *whole) / "weights"
    assert members() == []  # a cell on one device has the memory for itself
    (stored,), (known,) = (list(folder.glob("*.safetensors")) for folder in (weights, alone))
    for name, tensor in load_file(known).items():
        torch.testing.assert_close(load_file(stored)[name], tensor, rtol=0, atol=1e-5)
    log = (two / "log.txt").read_text()
    assert log.count("trained 20 steps") == 1


def test_what_fails_in_a_process_is_the_failure_of_the_cell(tmp_path):
    rows = tmp_path / "rows.jsonl"
    made = ({"prompt": f"What is {n} and one?", "completion": f"{n + 1}."} for n in range(100))
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    own = ("dataset=local", f"dataset.path={rows}", "evaluate=none", "execution.device=cpu")
    cells = plan_grid([*ASKED[:4], *own, "execution.devices=2"]).design.cells
    (named,) = (one for one in cells if not one.cell.is_base)
    rows.unlink()
    store = Store(tmp_path / "out")
    store.prepare()
    with pytest.raises(group.MemberFailed, match=r"rows\.jsonl") as caught:
        run_cells([named.cell], named.key, store)
    assert caught.value.told["kind"] == "error"
    assert "Traceback" in caught.value.told["traceback"]
    assert members() == []
    assert store.recorded() == []


def test_a_killed_process_ends_the_others_and_says_where(tmp_path, monkeypatch):
    def kill(place, facts=None, *, key=None):
        if place.startswith("step 3 "):
            members()[1].kill()

    monkeypatch.setattr(heart, "at", kill)
    with pytest.raises(
        group.MemberFailed, match=r"was killed at step \d+ of 400 \(SIGKILL\)"
    ) as caught:
        carried_out(tmp_path, *TWO, "train.max_steps=400")
    assert caught.value.told["kind"] == "killed"
    assert caught.value.told["place"].startswith("step ")
    assert members() == []


def command(out, *further):
    words = [sys.executable, "-m", "ablate", "-m", *ASKED, *further, f"out={out}"]
    return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def waited_for(condition, seconds=WAIT):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.1)
    return found


def test_a_stopped_command_leaves_no_process_and_goes_on_bit_for_bit(tmp_path):
    settings = (*TWO, "train.max_steps=60", "execution.checkpoint_minutes=0")
    whole = carried_out(tmp_path / "whole", *settings)
    out = tmp_path / "stopped"
    running = command(out, *settings)
    waited_for(lambda: list(out.glob("checkpoints/*/step-*")) or running.poll() is not None)
    left = members(running.pid)
    assert len(left) == 2
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=WAIT)
    assert running.returncode == 128 + signal.SIGTERM
    waited_for(lambda: not any(psutil.pid_exists(m.pid) and m.is_running() for m in left))
    again = command(out, *settings)
    _, told = again.communicate(timeout=WAIT)
    assert again.returncode == 0, told.decode()[-2000:]
    resumed = Store(out).folder(whole.name)
    assert record(resumed)["provenance"]["resumed"]
    a, b = (pd.read_parquet(folder / "history.parquet") for folder in (whole, resumed))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    stored, known = (
        load_file(next((f / "weights").glob("*.safetensors"))) for f in (resumed, whole)
    )
    assert all(torch.equal(tensor, known[name]) for name, tensor in stored.items())


def test_processes_of_a_killed_command_end(tmp_path):
    running = command(tmp_path, *TWO, "train.max_steps=4000")
    left = waited_for(lambda: members(running.pid))
    running.kill()
    running.communicate(timeout=WAIT)
    waited_for(
        lambda: not any(m.is_running() and m.status() != "zombie" for m in left if _alive(m))
    )


def _alive(process):
    return psutil.pid_exists(process.pid) and bool(_words(process))
