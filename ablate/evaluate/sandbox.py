"""Programs that a model wrote, run apart from everything else: what their tests say.

Each program is a process of its own under limits of time, memory, processes and file sizes. Where
the kernel lets a user make namespaces (most Linux machines; `unshare` of util-linux does it) it has
besides no network, no other process in sight, and every file read-only but for an empty /tmp that
is gone afterwards. Where it does not, the limits are all there is, and `isolation` says so.

A program passes if it ends by itself with status 0 in time: its tests are `assert`s at its end.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

SECONDS = 3.0  # of one program, as HumanEval's released runner has it
MEMORY_MB = 1024
FILE_MB = 16  # the most that one file in /tmp may hold
PROCESSES = 64
START = 10.0  # seconds more until a program that uses no processor time is killed from outside
MOST_SAID = 4096  # bytes of a verdict that are read
TOLD = 300  # characters of an error that are kept

# Runs in the sandbox before the program: the limits, then the program from standard input, with
# what it prints thrown away. `sys.exit(0)` before the tests must not pass, nor `os._exit`: only the
# line after the last one says that all of it ran.
_RUNNER = """
import os, resource, sys
seconds, memory, size, processes = map(int, sys.argv[1:5])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
limits = {"AS": memory, "FSIZE": size, "CORE": 0, "NOFILE": 64, "NPROC": processes}
for name, most in limits.items():
    try:
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    except (ValueError, OSError):
        pass  # not on this system
out = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
token, _, program = sys.stdin.buffer.read().decode("utf-8", "replace").partition(chr(10))
for number in (0, 1, 2):
    os.dup2(null, number)
sys.argv, sys.orig_argv = ["program"], ["program"]
write, leave = os.write, os._exit
try:
    exec(compile(program, "program", "exec"), {"__name__": "__main__"})
except SystemExit:
    said = "failed: it ended before its tests did"
except BaseException as error:
    said = f"failed: {type(error).__name__}"
    try:
        said += f": {error}"
    except BaseException:
        pass
else:
    said = "passed"
write(out, f"{token} {said}".encode("utf-8", "replace")[:2000])
leave(0)
"""
# Every mount read-only (a remount of / alone leaves /dev/shm, /sys and others), an empty /tmp, a
# read-only /proc of this space's own, no further user namespaces, then the runner without the
# capabilities that would undo all this. The shell stays the first process, for that one is spared
# by signals that end others.
_MOUNTS = (
    "mount --make-rprivate / && while read -r _ at _ had _; do "
    'mount -o "remount,bind,$had,ro" "$at" 2>/dev/null || mount -o remount,bind,ro "$at" '
    '2>/dev/null || case "$at" in /|/dev/shm) exit 1;; esac; done < /proc/self/mounts; '
    "mount -t tmpfs -o size=64m tmpfs /tmp && mount -t proc proc /proc "
    "&& echo 0 > /proc/sys/user/max_user_namespaces && mount -o remount,bind,ro /proc "
    "&& cd /tmp && { setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "
    '"$@"; exit $?; }'
)
_UNSHARE = (
    "unshare", "--user", "--map-root-user", "--net", "--pid", "--ipc", "--uts", "--mount", "--fork",
    "--kill-child", "--", "sh", "-c", _MOUNTS, "sh",
)  # fmt: skip


@functools.cache
def isolation() -> Literal["namespaces", "limits"]:
    """Return what keeps a program apart on this machine."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        words = [*_UNSHARE, _python(), "-I", "-S", "-c", ""]
        done = subprocess.run(words, capture_output=True, timeout=START, check=False)
        if done.returncode == 0:
            return "namespaces"
    return "limits"


def _python() -> str:
    """Return the interpreter itself, not its link in an environment, which may lie in /tmp."""
    return os.path.realpath(sys.executable)


def run(program: str, *, seconds: float = SECONDS) -> str:
    """Return "passed", "timed out" or "failed: ..." of a Python program with its tests.

    Args:
        program: what is run, tests included.
        seconds: of processor time; on the clock it may take `START` more.
    """
    # What a program writes without the token is no verdict. It could find the token in the memory
    # of its own process: the score trusts that no program sets out to.
    token = os.urandom(16).hex()
    whole = max(1, round(seconds))
    limits = (whole, MEMORY_MB << 20, FILE_MB << 20, PROCESSES)
    words = [_python(), "-I", "-S", "-c", _RUNNER, *map(str, limits)]
    if isolation() == "namespaces":
        words = [*_UNSHARE, *words]
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C.UTF-8"}
    # Files in place of pipes: what it writes is bounded by the limit of a file's size.
    with (
        tempfile.TemporaryDirectory(prefix="ablate-sandbox-") as folder,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as said,
    ):
        given.write(f"{token}\n{program}".encode("utf-8", "replace"))
        given.seek(0)
        with subprocess.Popen(
            words, stdin=given, stdout=said, stderr=subprocess.DEVNULL,
            cwd=folder, env=environment, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                process.wait(whole + START)
            except subprocess.TimeoutExpired:
                return "timed out"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        told = said.read(MOST_SAID).decode("utf-8", "replace")
    if told.startswith(f"{token} "):
        return told[len(token) + 1 :][:TOLD]
    late = process.returncode in (-signal.SIGXCPU, -signal.SIGKILL, 128 + signal.SIGXCPU,
                                  128 + signal.SIGKILL)  # fmt: skip
    return "timed out" if late else "failed: it ended before its tests did"


def pass_at_k(count: int, passed: int, k: int) -> float:
    """Return the chance that one of k answers passes, from `count` answers of which some did.

    1 − C(n − c, k) / C(n, k), unbiased (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Args:
        count: answers, at least k.
        passed: of them.
        k: how many are drawn without putting back.
    """
    if not 0 <= passed <= count or not 1 <= k <= count:
        raise ValueError(f"pass@{k} of {passed} of {count} answers")
    if count - passed < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(count - passed + 1, count + 1))


@dataclass(frozen=True)
class CodeEval:
    """What `evaluate.load("code_eval")` returns to lm-eval's tasks, in the sandbox.

    The one that the hub ships runs programs in the process's own account, without a sandbox.
    """

    seconds: float = SECONDS

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int | None = None,
        timeout: float | None = None,
    ) -> tuple[dict[str, float], Mapping[int, list[tuple[int, dict[str, Any]]]]]:
        """Return pass@k over problems, and every answer's outcome.

        Args:
            references: the tests of every problem.
            predictions: the answers to it.
            k: which pass@k; those beyond the number of answers are left out.
            num_workers: programs at a time, by default the processors there are.
            timeout: seconds of a program.
        """
        tasks = [
            (number, index, f"{answer}\n{tests}")
            for number, (tests, answers) in enumerate(zip(references, predictions, strict=True))
            for index, answer in enumerate(answers)
        ]
        seconds = self.seconds if timeout is None else timeout
        with ThreadPoolExecutor(num_workers or os.cpu_count() or 1) as pool:
            said = list(pool.map(lambda task: run(task[2], seconds=seconds), tasks))
        outcomes: dict[int, list[tuple[int, dict[str, Any]]]] = {
            number: [] for number in range(len(references))
        }
        for (number, index, _), result in zip(tasks, said, strict=True):
            one = {"task_id": number, "completion_id": index, "passed": result == "passed",
                   "result": result}  # fmt: skip
            outcomes[number].append((index, one))
        counts = [(len(own), sum(o["passed"] for _, o in own)) for own in outcomes.values()]
        found = {
            f"pass@{each}": float(np.mean([pass_at_k(n, c, each) for n, c in counts]))
            for each in k
            if counts and all(n >= each for n, _ in counts)
        }
        return found, outcomes


@contextlib.contextmanager
def in_place_of_the_hubs() -> Iterator[None]:
    """Give `evaluate.load("code_eval")` inside the block the metric of this module."""
    import evaluate

    usual = evaluate.load

    def load(path: str, *rest: Any, **options: Any) -> Any:
        return CodeEval() if path.endswith("code_eval") else usual(path, *rest, **options)

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = usual
