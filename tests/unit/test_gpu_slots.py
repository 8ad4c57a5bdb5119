"""One GPU a worker: how many there are, who holds them, and that torch sees one. No GPU is needed:
an nvidia-smi of the test says which GPUs there are.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from ablate import app
from ablate.errors import UserError
from ablate.models import gpu_slots

TWO = """GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aaaa)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-bbbb)
"""
MIG = """GPU 0: NVIDIA A100 (UUID: GPU-aaaa)
  MIG 3g.40gb     Device  0: (UUID: MIG-1111)
  MIG 3g.40gb     Device  1: (UUID: MIG-2222)
GPU 1: NVIDIA A100 (UUID: GPU-bbbb)
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that puts GPUs into this machine; without one it has none."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(gpu_slots.VISIBLE, raising=False)
    monkeypatch.delenv(gpu_slots.ORDER, raising=False)
    monkeypatch.setattr(gpu_slots, "_held", [])
    gpu_slots._smi.cache_clear()

    def put(listing, memory="81559\n40960\n"):
        script = tmp_path / "bin" / "nvidia-smi"
        script.write_text(
            f"#!/bin/sh\nif [ \"$1\" = -L ]; then printf '{listing}'; else printf '{memory}'; fi\n"
        )
        script.chmod(0o755)
        gpu_slots._smi.cache_clear()

    yield put
    gpu_slots._smi.cache_clear()


HOLD = """
import os, sys
from ablate.models import gpu_slots
print(gpu_slots.take({per_gpu}), os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
assert gpu_slots.take({per_gpu}) == os.environ["CUDA_VISIBLE_DEVICES"]  # once a process
assert "torch" not in sys.modules
sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Return a function that starts a process which holds a slot until its input ends."""
    with contextlib.ExitStack() as started:

        def start(per_gpu=1):
            return started.enter_context(subprocess.Popen(
                [sys.executable, "-c", HOLD.format(per_gpu=per_gpu)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            ))  # fmt: skip

        yield start


def taken(process):
    name, visible = process.stdout.readline().split()
    assert name == visible
    return name


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_two_workers_never_share_a_gpu(end, machine, holder):
    """A third waits until one of them has ended, killed or not."""
    machine(TWO)
    first, second = holder(), holder()
    names = [taken(first), taken(second)]
    assert sorted(names) == ["0", "1"]
    third = holder()
    assert third.stderr.readline() == "waiting for other workers, which hold GPUs 0, 1\n"
    first.send_signal(end) if end else first.stdin.close()
    first.wait(30)
    assert taken(third) == names[0]


def test_workers_share_a_gpu_where_that_is_asked(machine, holder):
    """Spread over all GPUs first; one that wants its GPU alone waits for them."""
    machine(TWO)
    sharing = [holder(per_gpu=2) for _ in range(4)]
    names = [taken(process) for process in sharing]
    assert sorted(names) == ["0", "0", "1", "1"]
    alone = holder()
    assert "waiting" in alone.stderr.readline()
    for process in sharing:
        process.communicate("")
    assert taken(alone) in ("0", "1")


@pytest.mark.parametrize(
    ("visible", "found"),
    [(None, ["0", "1"]), ("1", ["1"]), ("GPU-bbbb, 0", ["GPU-bbbb", "0"]), ("", []), ("-1", []),
     ("1,-1,0", ["1"])],
)  # fmt: skip
def test_the_users_own_choice_is_honoured(visible, found, machine, monkeypatch):
    machine(TWO)
    if visible is not None:
        monkeypatch.setenv(gpu_slots.VISIBLE, visible)
    assert gpu_slots.gpus() == found


def test_the_parts_of_a_gpu_are_gpus(machine):
    machine(MIG)
    assert gpu_slots.gpus() == ["MIG-1111", "MIG-2222", "1"]


def test_the_memory_is_that_of_the_smallest(machine):
    machine(TWO)
    assert gpu_slots.gpu_bytes() == 40960 * 2**20


def test_a_variable_makes_no_gpu(machine, monkeypatch):
    machine("")
    monkeypatch.setattr(gpu_slots, "PROC", gpu_slots.PROC / "absent")
    monkeypatch.setenv(gpu_slots.VISIBLE, "0,1")
    assert gpu_slots.gpus() == []
    assert gpu_slots.take(1) is None
    assert gpu_slots.gpu_bytes() is not None


@pytest.mark.parametrize(
    ("asked", "per_gpu", "on_gpu", "count"),
    [(None, 1, True, 2), (None, 4, True, 8), (-1, 1, True, 2), (1, 1, True, 1), (None, 1, False, 2),
     (6, 1, False, 6), (8, 4, True, 8)],
)  # fmt: skip
def test_a_sweep_has_a_worker_for_each_gpu(asked, per_gpu, on_gpu, count, machine):
    machine(TWO)
    assert gpu_slots.workers(asked, per_gpu=per_gpu, on_gpu=on_gpu) == count


def test_more_workers_than_slots_are_refused(machine):
    machine(TWO)
    with pytest.raises(UserError, match=r"n_jobs=5: 2 GPUs here.* workers_per_gpu=3 lets"):
        gpu_slots.workers(5, per_gpu=1, on_gpu=True)


def test_a_machine_without_a_gpu_is_as_it_was(machine, monkeypatch):
    machine("")
    monkeypatch.setattr(gpu_slots, "PROC", gpu_slots.PROC / "absent")
    assert gpu_slots.workers(None, per_gpu=1, on_gpu=True) == gpu_slots.CPU_WORKERS
    assert gpu_slots.workers(-1, per_gpu=1, on_gpu=True) == os.cpu_count()


def test_processes_of_a_launcher_of_ranks_are_refused(monkeypatch, capsys):
    """accelerate launch and torchrun start one in each: all but one would wait for ever."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert app.main(["-m", "seed=0,1"]) == 2
    assert capsys.readouterr().err.startswith("ablate: WORLD_SIZE=2: ")


@pytest.mark.parametrize(("given", "expected"), [([], [1, 2]), (["execution.device=cpu"], [0, 2])])
def test_a_sweep_gives_its_workers_a_gpu_each(
    given, expected, machine, tmp_path, monkeypatch, capsys
):
    """Up to the bundles; by default there are as many workers as GPUs."""
    machine(TWO)
    seen = []

    def launch(bundles, workers):
        seen.append([json.loads(bundles[0].read_text())["gpu"], workers])
        raise SystemExit(0)

    words = ["seed=0", "evaluate=none", f"out={tmp_path / 'out'}", *given]
    with pytest.raises(SystemExit):
        app.sweep_grid(words, launch, workers=None)
    assert seen == [expected]
