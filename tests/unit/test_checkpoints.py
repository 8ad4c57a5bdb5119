"""A run that goes on from a checkpoint ends as the undisturbed one, bit for bit."""

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
from safetensors.torch import load_file

from ablate import run
from ablate.adapters.stored import checkpoints_bytes
from ablate.experiment.request import plan_grid
from ablate.results.store import Store
from ablate.training import stop
from ablate.training.checkpoints import files, keeper
from ablate.training.hooks import Hooks, combine

STEPS = 8
SHORT = (
    "masking=none", "plw=0.1", "rank=4", "train.lr=0.01", "train.batch_size=6",
    f"train.max_steps={STEPS}", "dataset.max_rows=30", "evaluate.tasks=[]",
    "evaluate.heldout_rows=8", "execution.device=cpu", "report=false",
    "execution.checkpoint_minutes=0", "execution.keep_weights_mb=1000",
)  # fmt: skip
NOISE = ("costs", "provenance", "config")
CASES = {  # what a checkpoint must hold beside weights and AdamW's moments
    "full": ("adapter=full",),
    "lora": ("adapter=lora", "execution.layout=padded", "execution.micro_batch_size=2"),
    "packed": ("adapter=lora", "execution.layout=packed"),
    "dora": ("adapter=dora", "execution.gradient_checkpointing=true"),
    "mora": ("adapter=mora", "train.weight_decay=0.1", "embeddings=trained"),
    "remora": ("adapter=remora", "adapter.options.restarts=3"),
    "remora permuted": ("adapter=remora_permute", "adapter.options.every=3"),
    "relora": ("adapter=relora", "adapter.options.every=3"),
    "adalora": ("adapter=adalora", "adapter.options.initial=0.1", "adapter.options.final=0.2"),
    "lamda": ("adapter=lamda",),
    "decay to the start": ("init=pissa", "train.weight_decay=0.1"),
    "adafactor": ("adapter=full", "optimizer=adafactor"),
    "8 bits": ("adapter=full", "optimizer=adamw_8bit", "base_precision=bf16"),
    "masters": ("adapter=full", "base_precision=bf16", "train.precision=bf16"),
    "lora_fa": ("adapter=lora", "optimizer=lora_fa"),
    "lora_plus": ("adapter=lora", "optimizer=lora_plus"),
    "riemannian": ("adapter=lora", "optimizer=riemannian"),
    "neftune": ("regulariser=neftune", "execution.gradient_checkpointing=true"),
    "dropout": ("adapter=lora", "regulariser=adapter_dropout"),
    "rank dropout": ("adapter=lora", "regulariser=rank_dropout"),
    "attention dropout": ("adapter=full", "regulariser=attention_dropout"),
    "kl": ("adapter=full", "regulariser=kl"),
    "minkowski": ("adapter=full", "regulariser=minkowski"),
    "placebo": ("adapter=lora", "masking=placebo"),
}


class Interruption(Exception):
    pass


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    monkeypatch.setattr(keeper, "LEAST_SHARE", 0)


def planned(*asked):
    [named] = [n for n in plan_grid([*SHORT, *asked]).design.cells if not n.cell.is_base]
    return named


def interrupting(monkeypatch, step):
    """Raise in the middle of a step, counted from 0 over the run, in this attempt alone."""

    def after_backward(context):
        if context.step == step:
            raise Interruption

    made = run.hooks.hooks
    monkeypatch.setattr(
        run.hooks,
        "hooks",
        lambda *a, **k: combine(made(*a, **k), Hooks(after_backward=after_backward)),
    )


def trained(named, out, monkeypatch, interruptions=()):
    """Return the store in which a cell was trained, interrupted at some steps."""
    store = Store(out)
    store.prepare()
    for step in interruptions:
        with monkeypatch.context() as patched:
            interrupting(patched, step)
            with pytest.raises(Interruption):
                run.run_cells([named.cell], named.key, store)
    run.run_cells([named.cell], named.key, store)
    return store


@pytest.mark.parametrize("case", ["full", "lora", "masters", "8 bits"])
def test_a_plan_counts_the_bytes_of_checkpoints(case, tmp_path, monkeypatch):
    """Of one on the disk, as many times as are kept, and one that is being written."""
    named = planned(*CASES[case], "rank=32", "execution.checkpoints_kept=3")
    store = Store(tmp_path)
    store.prepare()
    interrupting(monkeypatch, 2)
    with pytest.raises(Interruption):
        run.run_cells([named.cell], named.key, store)
    newest = max(store.checkpoints(named.key).glob("step-*"))
    size = sum(file.stat().st_size for file in newest.glob("*.safetensors"))
    planned_bytes = checkpoints_bytes(named.cell, named.identity.files)
    assert planned_bytes == pytest.approx(4 * size, rel=0.1)
    none = replace(named.cell, execution=replace(named.cell.execution, checkpoint_minutes=None))
    assert checkpoints_bytes(none, named.identity.files) == 0


def contents(store, key):
    folder = store.folder(key)
    record = {k: v for k, v in store.record(key).items() if k not in NOISE}
    tables = [pd.read_parquet(folder / f"{name}.parquet") for name in ("items", "history")]
    tensors = {
        (file.name, name): tensor.numpy().tobytes()
        if tensor.dtype.is_floating_point is False
        else tensor.float().numpy().tobytes()
        for file in sorted((folder / "weights").glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    assert tensors
    return record, tables, tensors


def same(one, other):
    assert one[0] == other[0]
    for table, expected in zip(one[1], other[1], strict=True):
        pd.testing.assert_frame_equal(table, expected, check_exact=True)
    assert one[2] == other[2]


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_as_the_undisturbed_one(name, tmp_path, monkeypatch):
    named = planned(*CASES[name])
    at = (1, 3, 4, 7) if name == "remora" else (2, 5)
    whole = trained(named, tmp_path / "whole", monkeypatch)
    broken = trained(named, tmp_path / "broken", monkeypatch, interruptions=at)
    same(contents(broken, named.key), contents(whole, named.key))
    resumed = [s.record(named.key)["provenance"]["resumed"] for s in (broken, whole)]
    assert resumed == [list(at), []]
    assert not list(broken.checkpointed.iterdir())


def begun(tmp_path, monkeypatch, *asked, step=5):
    """Return a cell that was interrupted, its store, and the folders of its checkpoints."""
    named, store = planned("adapter=remora", "adapter.options.restarts=3", *asked), Store(tmp_path)
    store.prepare()
    with monkeypatch.context() as patched:
        interrupting(patched, step)
        with pytest.raises(Interruption):
            run.run_cells([named.cell], named.key, store)
    return named, store, files.found(store.checkpoints(named.key))


def finished(named, store):
    """Return the step that the last attempt went on from, and the log of the attempt."""
    run.run_cells([named.cell], named.key, store)
    log = (store.folder(named.key) / "log.txt").read_text()
    return store.record(named.key)["provenance"]["resumed"], log


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def turned(file):
    """Turn a bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def emptied(file):
    file.write_bytes(b"")


def replaced(file):
    file.write_text("[1, 2]")


def swapped(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("hurt", [cut, turned, emptied, replaced, swapped, lambda f: f.unlink()])
def test_of_damaged_checkpoints_the_one_before_is_taken(hurt, tmp_path, monkeypatch):
    named, store, kept = begun(tmp_path / "whole", monkeypatch)
    assert [folder.name for folder in kept] == ["step-00000005", "step-00000004"]
    for name in ("0.safetensors", "state.json", "manifest.json"):
        copied = Store(tmp_path / name)
        shutil.copytree(store.out, copied.out)
        hurt(copied.checkpoints(named.key) / "step-00000005" / name)
        if (hurt, name) == (turned, "manifest.json"):
            continue  # may hit a blank
        resumed, log = finished(named, copied)
        assert resumed == [4]
        lines = [line for line in log.splitlines() if "step-00000005" in line]
        assert len(lines) == 1
        assert "is not used" in lines[0]
    resumed, _ = finished(named, store)
    assert resumed == [5]


def test_without_a_sound_checkpoint_a_run_begins_anew(tmp_path, monkeypatch):
    named, store, kept = begun(tmp_path, monkeypatch)
    for folder in kept:
        cut(folder / "0.safetensors")
    assert finished(named, store)[0] == []


def test_checkpoints_of_other_rows_or_tensors_are_not_used(tmp_path, monkeypatch):
    named, store, kept = begun(tmp_path, monkeypatch)
    other = planned("adapter=lora")
    shorter = planned("adapter=remora", "adapter.options.restarts=3", "train.max_steps=7")
    for one in (other, shorter):
        shutil.copytree(store.checkpoints(named.key), store.checkpoints(one.key))
        resumed, log = finished(one, store)
        assert resumed == []
        assert log.count("is not used") == len(kept)


def test_no_checkpoint_is_written_where_none_is_asked_for_or_due(tmp_path, monkeypatch):
    for minutes in ("null", "30"):
        kept = begun(tmp_path / minutes, monkeypatch, f"execution.checkpoint_minutes={minutes}")[2]
        assert kept == []


def test_a_full_disk_costs_a_checkpoint_and_no_run(tmp_path, monkeypatch):
    named, store = planned("adapter=lora"), Store(tmp_path)
    store.prepare()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    _, log = finished(named, store)
    assert f"NO CHECKPOINT after step {STEPS}" in log
    assert not store.checkpointed.exists() or not list(store.checkpointed.glob("*/*"))


def test_the_status_of_a_stopped_run_is_that_of_its_signal():
    stop.request_stop(signal.SIGUSR1)
    with pytest.raises(stop.TrainingStopped, match="there") as told:
        keeper.Intervals(None).after_step(lambda: "there")
    assert told.value.status == 128 + signal.SIGUSR1


def test_a_run_that_is_asked_to_stop_ends_between_steps_with_a_checkpoint(tmp_path, monkeypatch):
    asked = ("adapter=lora", "regulariser=adapter_dropout", "execution.checkpoint_minutes=30")
    named, store = planned(*asked), Store(tmp_path / "stopped")
    store.prepare()
    made = run.hooks.hooks
    with monkeypatch.context() as patched:

        def hooks(*given, **known):
            stopping = Hooks(after_step=lambda c: stop.request_stop() if c.step == 2 else None)
            return combine(made(*given, **known), stopping)

        patched.setattr(run.hooks, "hooks", hooks)
        with pytest.raises(stop.TrainingStopped) as stopped:
            run.run_cells([named.cell], named.key, store)
    assert stopped.value.status == 143
    assert "after step 3" in stopped.value.line
    assert not store.failures(named.key)
    assert finished(named, store)[0] == [3]
    whole = trained(named, tmp_path / "whole", monkeypatch)
    same(contents(store, named.key), contents(whole, named.key))


LONG = [word for word in SHORT if "max_steps" not in word] + ["train.max_steps=200"]


def ended(out, how):
    """Return the exit status of `ablate run` that got a signal once it had written a checkpoint."""

    def written():
        return {folder.name for folder in (out / "checkpoints").glob("*/step-*")}

    before = written()
    process = subprocess.Popen(
        [sys.executable, "-m", "ablate", "-m", *LONG, "single=true", "hydra/launcher=basic",
         "regulariser=adapter_dropout", "execution.checkpoint_minutes=0.002", f"out={out}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and written() <= before:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    process.send_signal(how)
    told = process.communicate(timeout=300)[1]
    return process.returncode, told


@pytest.mark.slow
def test_after_sigkill_and_sigterm_the_same_command_goes_on(tmp_path, monkeypatch):
    assert ended(tmp_path / "out", signal.SIGKILL)[0] == -signal.SIGKILL
    status, told = ended(tmp_path / "out", signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    assert "stopped after step" in told
    assert "the same command goes on" in told
    monkeypatch.setattr(sys.modules[__name__], "SHORT", LONG)
    asked = ("regulariser=adapter_dropout", "execution.checkpoint_minutes=30")
    named, store = planned(*asked), Store(tmp_path / "out")
    assert not store.failures(named.key) or store.failures(named.key)[0]["kind"] == "killed"
    run.run_cells([named.cell], named.key, store)
    whole = trained(named, tmp_path / "whole", monkeypatch)
    same(contents(store, named.key), contents(whole, named.key))
    resumed = store.record(named.key)["provenance"]["resumed"]
    assert len(resumed) == 2
    assert resumed == sorted(resumed)
