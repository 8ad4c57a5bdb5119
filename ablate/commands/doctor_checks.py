"""What `ablate doctor` looks at, a finding each: packages, devices, folders, network, and speed.

Every check is short: nothing is trained or downloaded, and the hub is given two seconds.
"""

import importlib
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from ablate.errors import UserError
from ablate.paths import cache_dir, conf_dir, in_checkout
from ablate.version import __version__

State = Literal["ok", "absent", "slow", "fault"]
GIB = 2**30
LOW_DISK = 5 * GIB  # below it a study of small models may not fit
SMALL_MEMORY = 4 * GIB
CPU_GROUP = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD" in microseconds, or "max PERIOD"
SLOW_VARIABLES = {  # names of variables, and what each does to the speed
    "OPENBLAS_CORETYPE": "numpy takes the kernels of that processor, not of this one",
    "ATEN_CPU_CAPABILITY": "torch takes those instructions alone",
    "CUDA_LAUNCH_BLOCKING": "the GPU waits for every kernel: for debugging alone",
    "TORCHDYNAMO_DISABLE": "execution.compile=true has no effect",
}
# What a group of optional packages is for; those of the tests are left to `make test`.
USES = {
    "slurm": "cells as jobs of Slurm (hydra/launcher=slurm)",
    "ray": "cells on a Ray cluster (hydra/launcher=ray)",
    "parsl": "cells through Parsl (hydra/launcher=parsl)",
    "gpu": "base_precision=int8 and nf4, and the paged optimizers",
    "notebooks": "the notebooks of notebooks/",
    "docs": "the documentation as a site (make docs)",
    "browser": "the tests of the report in a browser",
    "trackers": "runs in the dashboard of a tracker",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    part: str  # of the report: packages, device, ...
    name: str
    told: str  # what it is here
    state: State = "ok"
    advice: str = ""  # why it matters, or what to do


def findings() -> list[Finding]:
    """Return all findings, in the order of the report."""
    checks = (_packages, _devices, _processor, _places, _outside, _optional, _variables)
    return [found for check in checks for found in check()]


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    from ablate.results.provenance import packages

    shown = packages()
    yield Finding("packages", "ablate", f"{__version__}, {conf_dir().parent}")
    yield Finding("packages", "python", str(shown["python"]))
    for line in _required():
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = _version(wanted.name)
        install = f"pip install '{wanted.name}{wanted.specifier}'"
        if version is None:
            yield Finding("packages", wanted.name, "is not installed", "fault", install)
        elif not wanted.specifier.contains(version, prereleases=True):
            told = f"{version}, where {wanted.specifier} is needed"
            yield Finding("packages", wanted.name, told, "fault", install)
        elif wanted.name in shown:
            yield Finding("packages", wanted.name, version)


def _project() -> dict[str, Any]:
    """Return what a checkout's pyproject.toml says of the project; {} in an installed package."""
    path = conf_dir().parent / "pyproject.toml"
    if not in_checkout() or not path.is_file():
        return {}
    found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return found


def _required() -> list[str]:
    """Return the requirements of this package, as its project or its installation states them."""
    if project := _project():
        return list(project["dependencies"])
    return metadata.requires("ablate") or []


def _extras() -> dict[str, list[str]]:
    """Return the optional packages by group, but for those of the tests."""
    if project := _project():
        groups = {name: list(some) for name, some in project["optional-dependencies"].items()}
    else:
        groups = {}
        for line in metadata.requires("ablate") or []:
            if found := re.search(r"""^(.*?)\s*;.*extra == ["'](\w+)["']""", line):
                groups.setdefault(found[2], []).append(found[1])
    return {name: some for name, some in groups.items() if name != "dev"}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> Any:
    return importlib.import_module("torch")  # takes a second, so not at the top


def _devices() -> Iterator[Finding]:
    """Look at torch's build, and at each GPU: its capability, precisions and kernels."""
    from ablate.models import gpu_slots

    try:
        torch = _torch()
    except ImportError as error:
        why = "pip install torch, as its site says for this machine"
        yield Finding("devices", "torch", f"cannot be imported ({error})", "fault", why)
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    build = f"ROCm {torch.version.hip}" if torch.version.hip else build
    present, seen = gpu_slots.gpus(), torch.cuda.is_available()
    if present and not seen:
        why = (
            "the driver is too old for this CUDA: update it, or install a torch of an older CUDA"
            if build.startswith("CUDA")
            else "this torch is a build for the CPU: install one for CUDA (pytorch.org/get-started)"
        )
        told = f"{len(present)} here, which this torch ({build}) cannot use"
        yield Finding("devices", "GPU", told, "fault", why)
    elif not seen:
        yield Finding(
            "devices", "GPU", f"none; torch is a build for {build}", "slow",
            "a cell of a model of 0.1B or more takes hours on a CPU; the micro world needs no GPU",
        )  # fmt: skip
    for number in range(torch.cuda.device_count() if seen else 0):
        yield from _gpu(torch, number)


def _gpu(torch: Any, number: int) -> Iterator[Finding]:
    about = torch.cuda.get_device_properties(number)
    name, capability = f"GPU {number}", (about.major, about.minor)
    size, version = about.total_memory / GIB, ".".join(map(str, capability))
    yield Finding("devices", name, f"{about.name}, {size:.0f} GiB, capability {version}")
    if capability < (8, 0):
        yield Finding(
            "devices", f"{name} precision", "fp32 and fp16; no bf16, no TF32", "slow",
            "train.precision=bf16 is emulated, and rows are padded where newer GPUs pack them",
        )  # fmt: skip
        return
    yield Finding("devices", f"{name} precision", "bf16 (train.precision=bf16); fp32 without TF32")
    from ablate.models import attention

    attention.find_kernels()
    if attention.kernel_for(torch.device("cuda"), torch.bfloat16, 64) is None:
        yield Finding(
            "devices", f"{name} kernels", "no attention inside packed rows", "slow",
            "short rows are padded, which is slower: install torch 2.10 or newer, or flash-attn",
        )  # fmt: skip
    else:
        yield Finding("devices", f"{name} kernels", "attention inside packed rows, in one kernel")


def cores() -> float:
    """Return how many cores this process may use, the quota of its container included."""
    allowed = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else 0.0
    allowed = allowed or float(os.cpu_count() or 1)
    try:
        quota, period = CPU_GROUP.read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else min(allowed, int(quota) / int(period))


def _processor() -> Iterator[Finding]:
    import psutil

    usable = cores()
    told = f"{usable:g} of {os.cpu_count()} cores"
    if usable < 2:
        why = "a sweep on a CPU computes two cells at once: here they share a core"
        yield Finding("processor", "cores", told, "slow", why)
    else:
        yield Finding("processor", "cores", told)
    try:
        kernels = _torch().backends.cpu.get_cpu_capability()
    except ImportError:
        kernels = ""
    if kernels == "DEFAULT":
        why = "torch finds no vector instructions: a CPU computes several times slower"
        yield Finding("processor", "instructions", "none", "slow", why)
    elif kernels:
        yield Finding("processor", "instructions", kernels)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > usable + 1:
        why = "other programs compute here: times of a plan are too short"
        yield Finding("processor", "load", f"{busy:.1f} processes want to run", "slow", why)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > usable:
        why = "more threads than cores get in each other's way; execution.threads sets a cell's"
        yield Finding("processor", "OMP_NUM_THREADS", threads, "slow", why)
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    told = f"{memory.available / GIB:.1f} GiB of {memory.total / GIB:.1f} free"
    small = memory.available < SMALL_MEMORY
    why = "every worker needs 0.6 GiB beside its model: the system may end one" if small else ""
    yield Finding("processor", "memory", told, "slow" if small else "ok", why)
    if swap.used > GIB:
        why = "memory is on the disk: whatever computes there waits for it"
        yield Finding("processor", "swap", f"{swap.used / GIB:.1f} GiB in use", "slow", why)


def _places() -> Iterator[Finding]:
    """Look at the folders that are written: results here, caches, temporary files."""
    above = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(os.environ.get("HF_HOME") or Path(above, "huggingface")).expanduser()
    places = (
        ("this folder", Path.cwd(), "results are written below it: out=DIR"),
        ("cache of ablate", cache_dir(), "tokens and timings; ABLATE_CACHE moves it"),
        ("cache of the hub", home, "models and data; HF_HOME moves it"),
        ("temporary files", Path(tempfile.gettempdir()), "TMPDIR moves them"),
    )
    for name, path, about in places:
        there = next(each for each in (path, *path.parents) if each.exists())
        free, told = shutil.disk_usage(there).free, f"{path}, "
        if not os.access(there, os.W_OK | os.X_OK):
            state: State = "absent" if name == "this folder" else "fault"
            yield Finding("folders", name, f"{told}may not be written", state, about)
        else:
            low = free < LOW_DISK
            why = f"little is left on this disk; {about}" if low else about
            yield Finding("folders", name, f"{told}{free / GIB:,.0f} GiB free",
                          "slow" if low else "ok", why)  # fmt: skip


def _outside() -> Iterator[Finding]:
    """Look at the hub, and at what keeps programs apart that a model wrote."""
    from ablate import hub
    from ablate.evaluate.sandbox import described, isolation

    fault = hub.unreachable()
    why = "what is in its cache is used, and the micro world needs nothing" if fault else ""
    told = f"not asked or not reached: {fault}" if fault else "answers"
    yield Finding("outside", "hub", told, "absent" if fault else "ok", why)
    try:
        apart = isolation() == "namespaces"
    except UserError as error:
        yield Finding("outside", "sandbox", "could not be told", "slow", str(error))
        return
    advice = "" if apart else "evaluate.run_code=true asks no further question: docs/security.md"
    yield Finding("outside", "sandbox", described(), "ok" if apart else "absent", advice)


def _optional() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    for group, lines in _extras().items():
        for wanted in map(Requirement, lines):
            version, use = _version(wanted.name), USES.get(group, group)
            install = f"pip install '{wanted.name}{wanted.specifier}'"
            if version is None:
                yield Finding("optional", wanted.name, f"for {use}", "absent", install)
            elif not wanted.specifier.contains(version, prereleases=True):
                told = f"{version}, where {wanted.specifier} is needed; for {use}"
                yield Finding("optional", wanted.name, told, "absent", install)
            else:
                yield Finding("optional", wanted.name, f"{version}, for {use}")


def _variables() -> Iterator[Finding]:
    for name, effect in SLOW_VARIABLES.items():
        if value := os.environ.get(name):
            yield Finding("environment", name, value, "slow", effect)


def verdict(found: Sequence[Finding]) -> str:
    """Return in a line whether cells can be trained here, and how many things are slow."""
    faults = [each for each in found if each.state == "fault"]
    if faults:
        return f"to mend first: {', '.join(each.name for each in faults)}"
    slow = sum(each.state == "slow" for each in found)
    return f"all that is needed is here; {slow} slow" if slow else "all that is needed is here"
