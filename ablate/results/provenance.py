"""The provenance of a record: code, packages and machine."""

import functools
import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

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


def hardware(device: str) -> dict[str, Any]:
    """Return what the cell was computed on; `device` is the accelerator's name, or cpu."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "device": device,
    }
