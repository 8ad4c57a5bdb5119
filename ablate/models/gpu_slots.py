"""One GPU for each worker: which GPUs there are, and the slot that a worker takes. No torch.

A slot is a GPU, a part of one where `workers_per_gpu` workers are to share it, or as many GPUs as
`execution.devices` asks for one cell. Its lock is an
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


def check_devices(devices: int, *, per_gpu: int = 1) -> None:
    """Check that there are as many GPUs here as one cell is to be computed on.

    Raises:
        UserError: there are fewer, or they are shared, or parts of one.
    """
    names = gpus()
    if devices == 1 or not names:
        return
    setting = f"execution.devices={devices}"
    if per_gpu > 1:
        raise UserError(f"workers_per_gpu={per_gpu}: must be 1 with {setting}")
    if len(names) < devices:
        here = f"{len(names)} GPU{'s' * (len(names) > 1)} here"
        raise UserError(f"{setting}: {here}; at most {len(names)}, or execution.device=cpu")
    if any(name.startswith("MIG") for name in names):
        raise UserError(f"{setting}: parts of a GPU (MIG) cannot compute together; must be 1")


def workers(asked: int | None, *, per_gpu: int, on_gpu: bool, devices: int = 1) -> int:
    """Return how many workers a sweep on this machine has.

    Args:
        asked: hydra.launcher.n_jobs as the user set it: all that there is room for below 0; None
            where it was not set.
        per_gpu: workers that share a GPU.
        on_gpu: whether a cell may use a GPU.
        devices: that a cell is computed on.

    Raises:
        UserError: there are fewer slots than workers.
    """
    slots = len(gpus()) // devices * per_gpu if on_gpu else 0
    if not slots:
        if asked is not None and asked < 0:
            return max(1, (os.cpu_count() or 1) // devices)
        return max(1, CPU_WORKERS // devices) if asked is None else asked
    if asked is None or asked < 0:
        return slots
    if asked > slots and devices > 1:
        raise UserError(
            f"hydra.launcher.n_jobs={asked}: {len(gpus())} GPUs here, at "
            f"execution.devices={devices} for at most {slots}"
        )
    if asked > slots:
        count = slots // per_gpu
        need = -(-asked // count)
        raise UserError(
            f"hydra.launcher.n_jobs={asked}: {count} GPU{'s' * (count > 1)} here, at "
            f"workers_per_gpu={per_gpu} for at most {slots}; workers_per_gpu={need} lets workers "
            "share one, execution.device=cpu uses none"
        )
    return asked


def take(per_gpu: int, devices: int = 1) -> str | None:
    """Return the GPUs that this process has from now on; None where there is none.

    It waits while other workers hold too many of them, and says so.

    Raises:
        UserError: there are fewer than `devices`.
    """
    if _held:
        return os.environ[VISIBLE]
    names, told = gpus(), False
    if not names:
        return None
    check_devices(devices, per_gpu=per_gpu)
    if os.environ.get(VISIBLE) is None:
        os.environ.setdefault(ORDER, "PCI_BUS_ID")  # the numbers of nvidia-smi
    while not (taken := _free(names, per_gpu, devices)):
        if not told:
            held = f"GPU{'s' * (len(names) > 1)} {', '.join(names)}"
            print(f"waiting for other workers, which hold {held}", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)
    os.environ[VISIBLE] = ",".join(taken)
    return os.environ[VISIBLE]


def _free(names: list[str], per_gpu: int, devices: int) -> list[str]:
    """Lock a slot and return its GPUs, one that is not shared yet if there is one.

    Of a slot of several GPUs none is kept while others are not free: two workers would wait for
    each other.
    """
    taken: list[str] = []
    handles: list[IO[str]] = []
    for part in range(per_gpu):
        for name in names:
            if name not in taken and (locks := _lock(name, part, shared=per_gpu > 1)):
                taken.append(name)
                handles += locks
            if len(taken) == devices:
                _held.extend(handles)
                return taken
    for handle in handles:
        handle.close()
    return []


def _lock(name: str, part: int, *, shared: bool) -> list[IO[str]]:
    """Return the locks of one part of a GPU, none where another holds it.

    The GPU itself is locked for its workers, or for this one alone.
    """
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
            return []
    return handles


def _folder() -> Path:
    folder = Path(tempfile.gettempdir(), f"ablate-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
