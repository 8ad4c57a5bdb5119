"""One GPU for each worker: which GPUs there are, and the slot that a worker takes. No torch.

A slot is a GPU, or a part of one where `workers_per_gpu` workers are to share it. Its lock is an
advisory one of the operating system, for all sweeps of a user on this machine, and ends with the
process that holds it. A worker takes its slot before torch asks CUDA for anything: from then on
the process sees that GPU alone, whatever a launcher gives it to do.
"""

import fcntl
import functools
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from ablate.errors import UserError

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
PROC = Path("/proc/driver/nvidia/gpus")
POLL_SECONDS = 1.0
CPU_WORKERS = 2  # cells at once on a machine without a GPU

_held: list[IO[str]] = []  # the locks of this process's slot; they end with the process


@functools.cache
def _smi(*words: str) -> str:
    """Return what nvidia-smi prints; empty where it cannot be run."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *words], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _present() -> list[str]:
    """Return the names of all GPUs: numbers, or the UUIDs of the parts that MIG made of one."""
    found: list[str] = []
    whole = 0
    for kind, uuid in re.findall(r"^\s*(GPU|MIG) .*\(UUID: (\S+)\)", _smi("-L"), re.MULTILINE):
        if kind == "GPU":
            found.append(str(whole))
            whole += 1
        else:
            if found[-1] == str(whole - 1):
                found.pop()
            found.append(uuid)
    return found or ([str(i) for i, _ in enumerate(PROC.iterdir())] if PROC.is_dir() else [])


def gpus() -> list[str]:
    """Return the GPUs that a process started here may use, as CUDA_VISIBLE_DEVICES names them.

    Those that the user made visible, else all; none where the machine has none.
    """
    present, visible = _present(), os.environ.get(VISIBLE)
    if not present or visible is None:
        return present
    words = [word.strip() for word in visible.split(",")]
    stop = next((i for i, word in enumerate(words) if word in ("", "-1")), len(words))
    return words[:stop]  # CUDA ignores what stands behind a name that is none


def gpu_bytes() -> float | None:
    """Return the memory of the smallest GPU here; None where it cannot be asked."""
    lines = _smi("--query-gpu=memory.total", "--format=csv,noheader,nounits").split()
    sizes = [float(line) for line in lines if line.replace(".", "").isdigit()]
    return min(sizes) * 2**20 if sizes else None


def workers(asked: int | None, *, per_gpu: int, on_gpu: bool) -> int:
    """Return how many workers a sweep on this machine has.

    Args:
        asked: hydra.launcher.n_jobs as the user set it: all that there is room for below 0; None
            where it was not set.
        per_gpu: workers that share a GPU.
        on_gpu: whether a cell may use a GPU.

    Raises:
        UserError: there are fewer slots than workers.
    """
    slots = len(gpus()) * per_gpu if on_gpu else 0
    if not slots:
        if asked is not None and asked < 0:
            return os.cpu_count() or 1
        return CPU_WORKERS if asked is None else asked
    if asked is None or asked < 0:
        return slots
    if asked > slots:
        count = slots // per_gpu
        need = -(-asked // count)
        raise UserError(
            f"hydra.launcher.n_jobs={asked}: {count} GPU{'s' * (count > 1)} here, at "
            f"workers_per_gpu={per_gpu} for at most {slots}; workers_per_gpu={need} lets workers "
            "share one, execution.device=cpu uses none"
        )
    return asked


def take(per_gpu: int) -> str | None:
    """Return the GPU that this process has from now on; None where there is none.

    It waits while other workers hold all of them, and says so.
    """
    if _held:
        return os.environ[VISIBLE]
    names, told = gpus(), False
    if not names:
        return None
    if os.environ.get(VISIBLE) is None:
        os.environ.setdefault(ORDER, "PCI_BUS_ID")  # the numbers of nvidia-smi
    while (name := _free(names, per_gpu)) is None:
        if not told:
            held = f"GPU{'s' * (len(names) > 1)} {', '.join(names)}"
            print(f"waiting for other workers, which hold {held}", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)
    os.environ[VISIBLE] = name
    return name


def _free(names: list[str], per_gpu: int) -> str | None:
    """Lock a slot and return its GPU, one that is not shared yet if there is one."""
    for part in range(per_gpu):
        for name in names:
            if _lock(name, part, shared=per_gpu > 1):
                return name
    return None


def _lock(name: str, part: int, *, shared: bool) -> bool:
    """Lock one part of a GPU; the GPU itself is locked for its workers, or for this one alone."""
    locks = {f"{name}": fcntl.LOCK_SH if shared else fcntl.LOCK_EX, f"{name}.{part}": fcntl.LOCK_EX}
    handles: list[IO[str]] = []
    for file, kind in locks.items():
        handle = (_folder() / re.sub(r"[^\w.-]", "_", file)).open("a")
        handles.append(handle)
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except OSError:
            for one in handles:
                one.close()
            return False
    _held.extend(handles)
    return True


def _folder() -> Path:
    folder = Path(tempfile.gettempdir(), f"ablate-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
