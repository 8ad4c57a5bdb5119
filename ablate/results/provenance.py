"""The provenance of a record: code, packages and machine."""

import contextlib
import functools
import importlib
import os
import platform
import socket
import subprocess
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "ablate", "torch", "transformers", "peft", "accelerate", "datasets", "lm_eval", "tokenizers",
    "numpy", "hydra-core",
)  # fmt: skip


@functools.cache
def code() -> dict[str, Any]:
    """Return the commit of this package's checkout and whether it was changed since, or None."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or None, "dirty": bool(changes) if commit else None}


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@functools.cache
def packages() -> dict[str, str | None]:
    """Return the versions of the packages that numbers depend on; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


_start: float | None = None  # seconds from the start of this process to its first cell


def ready() -> None:
    """Note that this process is ready for its first cell, where that was not noted before."""
    global _start
    if _start is None:
        _start = time.time() - psutil.Process().create_time()


def hardware(device: str, attention: str | None = None) -> dict[str, Any]:
    """Return what the cell was computed on.

    Args:
        device: torch's name of the accelerator, or cpu.
        attention: the implementation of attention that the model's configuration names.
    """
    found = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start_seconds": None if _start is None else round(_start, 1),
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": device,
        "attention": attention,
    }
    torch = importlib.import_module("torch")  # slow, and loaded already where there is a model
    found["kernels"] = torch.backends.cpu.get_cpu_capability()
    found["threads"] = torch.get_num_threads()
    return found | (_gpu(device) if device.startswith("cuda") else {})


def _gpu(device: str) -> dict[str, Any]:
    """Return the GPU, its software, and the settings of torch that its numbers depend on."""
    torch = importlib.import_module("torch")
    kernels = ("flash", "mem_efficient", "cudnn", "math")
    with warnings.catch_warnings():  # some versions of torch announce another name for it
        warnings.filterwarnings("ignore", message="Please use the new API settings")
        precision = torch.get_float32_matmul_precision()
    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "matmul_precision": precision,  # highest: without TF32
        "sdpa_kernels": [
            name for name in kernels if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()
        ],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@functools.cache
def _processor() -> str:
    """Return the model name of the processor, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


@functools.cache
def _driver() -> str | None:
    """Return the version of NVIDIA's driver; None where it cannot be read."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return next((word for word in first.split() if word[0].isdigit() and "." in word), None)
