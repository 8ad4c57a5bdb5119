"""Programs that a model wrote, run apart from everything else: what their tests say.

Each program is a process of its own under limits of time, memory, processes and file sizes. Where
the kernel lets a user make namespaces (most Linux machines; `unshare` of util-linux does it) it has
besides no network, no other process in sight, and every file read-only but for an empty /tmp that
is gone afterwards. Where it does not, the limits are all there is, and `isolation` says so.

A program passes if it ends by itself with status 0 in time: its tests are `assert`s at its end.
Time is that of processors. How busy the machine is changes no verdict: what a program waits for a
processor does not count, and what cannot be told is an error and no failure of the program.
"""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO, Literal

from ablate.errors import UserError
from ablate.evaluate.processor_time import Used, idle, tree, used

SECONDS = 3.0  # of processor time of one program, as long as HumanEval's released runner has it
ASLEEP = 10.0  # seconds that a program may neither run nor wait for a processor
MEMORY_MB = 1024
FILE_MB = 16  # the most that one file in /tmp may hold
PROCESSES = 64
START = 60.0  # seconds on the clock until the program itself begins
LONGEST = 1800.0  # seconds on the clock, however busy the machine is
TRIES = 3  # of what may have failed for want of anything on this machine
PAUSE = 0.5  # seconds before another try, and between looks at a program
MOST_SAID = 4096  # bytes of a verdict that are read
TOLD = 300  # characters of an error that are kept
BEGUN = b"begun"

Isolation = Literal["namespaces", "limits"]

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
os.write(2, b"begun")
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
# A /dev of five devices (no mount keeps root from writing to a disk's), no sockets in /run (nor
# does it from asking a daemon; NixOS has its programs there), every mount read-only (a remount of /
# alone leaves /sys and others), an empty /tmp, a read-only /proc of this space's own, no further
# user namespaces, then the runner without the capabilities that would undo all this. The shell
# stays the first process, for that one is spared by signals that end others.
_MOUNTS = (
    "mount --make-rprivate / && mount -t tmpfs -o size=1m,mode=755 tmpfs /tmp "
    "&& for one in null zero full random urandom; do : > /tmp/$one "
    "&& mount --bind /dev/$one /tmp/$one || exit 1; done && mount --move /tmp /dev "
    "&& { [ ! -d /run ] || [ -e /run/current-system ] "
    "|| mount -t tmpfs -o size=1m,mode=755 tmpfs /run; } && while read -r _ at _ had _; do "
    'mount -o "remount,bind,$had,ro" "$at" 2>/dev/null || mount -o remount,bind,ro "$at" '
    '2>/dev/null || case "$at" in /|/dev|/run) exit 1;; esac; done < /proc/self/mounts; '
    "mount -t tmpfs -o size=64m tmpfs /tmp && mount -t proc proc /proc "
    "&& echo 0 > /proc/sys/user/max_user_namespaces && mount -o remount,bind,ro /proc "
    "&& cd /tmp && { setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "
    '"$@"; exit $?; }'
)
_UNSHARE = (
    "unshare", "--user", "--map-root-user", "--net", "--pid", "--ipc", "--uts", "--mount", "--fork",
    "--kill-child", "--", "sh", "-c", _MOUNTS, "sh",
)  # fmt: skip


class NotJudged(RuntimeError):
    """A program of which it could not be told whether its tests pass."""


@functools.cache
def isolation() -> Isolation:
    """Return what keeps a program apart on this machine.

    Raises:
        UserError: that cannot be told, because the machine is too busy to try it.
    """
    if not _has_tools():
        return "limits"
    outcomes: list[bool | None] = []
    for _ in range(TRIES):
        if outcomes:
            time.sleep(PAUSE)
        outcomes.append(_probed())
        if outcomes[-1]:
            return "namespaces"
    # A kernel that refuses does so each time; a want of memory or of processes passes.
    if outcomes == [False] * TRIES:
        return "limits"
    raise UserError(
        f"evaluate.run_code=true: whether programs can be kept apart could not be told: {TRIES} "
        f"tries of {START:g} seconds did not end; nothing was run. Again when this machine is less "
        "busy (docs/security.md)"
    )


def described() -> str:
    """Return in words what keeps programs apart on this machine, or that it cannot be told."""
    try:
        kept = isolation()
    except UserError:
        return "what keeps programs apart could not be told: this machine is too busy"
    return DESCRIPTIONS[kept]


DESCRIPTIONS = {
    "namespaces": "namespaces: no network, no other process, no file to write but in a /tmp of "
    "their own",
    "limits": "limits of time and memory ALONE: programs see your files and the network "
    "(docs/security.md)",
}


def _has_tools() -> bool:
    return sys.platform == "linux" and all(map(shutil.which, ("unshare", "setpriv")))


def _probed() -> bool | None:
    """Return whether a program could be started in namespaces; None: it cannot be told."""
    words = [*_UNSHARE, _python(), "-I", "-S", "-c", ""]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=START, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode < 0 or done.returncode > 128:  # ended by a signal
        return None
    return done.returncode == 0


def _python() -> str:
    """Return the interpreter itself, not its link in an environment, which may lie in /tmp."""
    return os.path.realpath(sys.executable)


def run(program: str, *, seconds: float = SECONDS) -> str:
    """Return "passed", "timed out" or "failed: ..." of a Python program with its tests.

    A program that sleeps, or that something else ended, is tried once more before that counts.

    Args:
        program: what is run, tests included.
        seconds: of processor time, of all its processes together; at least one.

    Raises:
        NotJudged: it could not be started, or did not get enough of the processors in half an hour.
        UserError: it cannot be told what keeps programs apart.
    """
    whole, why, doubts = max(1, round(seconds)), "", 0
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE)
        end = _once(program, whole)
        if not end.begun:
            why = "it could not be started"
        elif end.stopped == "late":
            why = f"it did not end in {LONGEST:g} seconds on the clock"
        elif end.stopped == "asleep" or end.killed:
            doubts += 1
            if doubts == 2:
                return "timed out" if end.stopped else "failed: it was killed"
        else:
            return _verdict(end, whole)
    raise NotJudged(f"a generated program was not judged: {why or 'it was killed'}; machine busy?")


@dataclass(frozen=True, slots=True)
class _End:
    """How a program ended, what it used and what it said."""

    begun: bool
    stopped: Literal["", "asleep", "used up", "late"]  # from outside, and why
    status: int
    processor: float  # seconds, of all its processes
    said: str

    @property
    def killed(self) -> bool:
        """Whether something else ended it, as the kernel does where memory runs out."""
        return not self.stopped and self.status in (-signal.SIGKILL, 128 + signal.SIGKILL)


def _verdict(end: _End, whole: int) -> str:
    spent = end.status in (-signal.SIGXCPU, 128 + signal.SIGXCPU)
    # A second for the start, and for processes that were near the end of theirs.
    if end.stopped or spent or end.processor > whole + 1:
        return "timed out"
    return end.said or "failed: it ended before its tests did"


def _once(program: str, whole: int) -> _End:
    """Run a program once with `whole` seconds of processor time."""
    # What a program writes without the token is no verdict. It could find the token in the memory
    # of its own process: the score trusts that no program sets out to.
    token = os.urandom(16).hex()
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
        tempfile.TemporaryFile() as begun,
    ):
        given.write(f"{token}\n{program}".encode("utf-8", "replace"))
        given.seek(0)
        with subprocess.Popen(
            words, stdin=given, stdout=said, stderr=begun,
            cwd=folder, env=environment, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                stopped, processor = _watched(process, begun, whole)
            finally:
                _end(process)
        told = os.pread(said.fileno(), MOST_SAID, 0).decode("utf-8", "replace")
        own = told[len(token) + 1 :][:TOLD] if told.startswith(f"{token} ") else ""
        return _End(_has_begun(begun), stopped, process.returncode, processor, own)


def _watched(
    process: "subprocess.Popen[bytes]", begun: IO[bytes], whole: int
) -> tuple[Literal["", "asleep", "used up", "late"], float]:
    """Wait for a program; return why it must be stopped, "" if it ended, and what it used."""
    launched, slept = time.monotonic(), 0.0
    before: Used | None = None
    while (processor := _ended(process, PAUSE)) is None:
        now = used(process.pid)
        if before is None and not _has_begun(begun):
            if now.at - launched > START:
                return "late", now.processor
            continue
        slept += idle(before, now) if before is not None else 0.0
        before = now
        if now.processor > whole + 1:
            return "used up", now.processor
        if slept > ASLEEP:
            return "asleep", now.processor
        if now.at - launched > LONGEST:
            return "late", now.processor
    return "", processor


def _ended(process: "subprocess.Popen[bytes]", most: float) -> float | None:
    """Wait `most` seconds for the end; return the processor time of all it waited for, or None."""
    deadline, pause = time.monotonic() + most, 0.001
    while True:
        pid, status, spent = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return spent.ru_utime + spent.ru_stime
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(pause, left))
        pause = min(2 * pause, 0.05)


def _has_begun(begun: IO[bytes]) -> bool:
    return BEGUN in os.pread(begun.fileno(), MOST_SAID, 0)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End what is left of a program."""
    with contextlib.suppress(ProcessLookupError):
        below = tree(process.pid) if process.returncode is None else []
        os.killpg(process.pid, signal.SIGKILL)
        for pid in below:  # one that left the group
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
