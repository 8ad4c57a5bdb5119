"""Real sweeps under everything that befalls them, and what is left: `python -m tests.torture`.

    signals    SIGKILL, SIGTERM, SIGINT, SIGSTOP, SIGHUP at random moments to a random worker, to
               the sweep or to all of it; the same command again until it has finished
    beside     three sweeps at once on one folder, whose clocks differ by an hour and jump
    ctrl-c     ten interruptions of one cell
    disk       a full disk and one that may only be read, in a small tmpfs (needs root)

Each part ends with the same questions: is every record that of an undisturbed sweep, is any cell
given up, how often was each trained to its end, are processes, claims or half-written files left,
and was what `ablate status` says true whenever it was asked. A figure that is not as it must be
ends the script with status 1.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
import psutil

from ablate import interrupts
from ablate.errors import UserError
from ablate.experiment.status import states
from ablate.results import leases

GRID = [
    "masking=instruction,none", "plw=0.1,1", "adapter=lora,mora", "rank=2", "seed=0,1,2,3",
    "train.lr=1e-3", "train.max_steps=3", "train.batch_size=8", "dataset.max_rows=64",
    "evaluate=none", "evaluate.heldout_rows=8", "report=false",
]  # fmt: skip
LONG = [
    "masking=none", "plw=0.1", "adapter=lora", "rank=2", "train.lr=1e-3", "train.max_steps=600",
    "evaluate=none", "evaluate.heldout_rows=8", "report=false", "execution.checkpoint_minutes=null",
]  # fmt: skip
NOISE = ("costs", "provenance", "seal")  # time, host and process, and the hashes of these
MARK = "ABLATE_TORTURE"
# A busy machine wants more: a worker that cannot say so for that long counts as stopped.
LEASE_SECONDS = float(os.environ.get("ABLATE_LEASE_SECONDS") or 12)
USUAL_SECONDS = 25.0  # of the undisturbed sweep where nothing else runs
END_SECONDS = 10.0  # from the request to stop until a sweep has ended
# Each process writes what it trains, and its clock is wrong where it is told so.
CUSTOM = """
import faulthandler, logging, os, random, re, signal, time

class Count(logging.Handler):
    def emit(self, record):
        text = record.getMessage()
        kind = "begun" if text.startswith("training on") else "ended" if re.match(
            r"trained \\d+ steps in", text) else ""
        if kind:
            files = [getattr(h, "baseFilename", "") for h in logging.getLogger("ablate").handlers]
            key = next(m[1] for f in files if (m := re.search(r"-([0-9a-f]{16})-[0-9a-f]+/", f)))
            with open(os.environ["TORTURE_LOG"], "a") as log:
                log.write(f"{kind} {key} {os.getpid()}\\n")

if "TORTURE_LOG" in os.environ:
    logging.getLogger("ablate").addHandler(Count(logging.INFO))
    stacks = open(os.path.join(os.path.dirname(os.environ["TORTURE_LOG"]), "stacks.txt"), "a")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
if "TORTURE_CLOCK" in os.environ:
    real, off = time.time, random.uniform(-3600, 3600)
    time.time = lambda: real() + off + random.choice([0, 0, 0, random.uniform(-3600, 3600)])
"""


class Bench:
    """A folder for the results of sweeps, and what they wrote of their training."""

    def __init__(self, home: Path, name: str, *, clock: bool = False) -> None:
        self.home, self.out, self.log = home, home / name / "out", home / name / "trained.log"
        self.stacks = home / name / "stacks.txt"
        (home / name).mkdir()
        (home / "custom").mkdir(exist_ok=True)
        (home / "custom" / "sitecustomize.py").write_text(CUSTOM)
        self.id = f"{name}-{os.getpid()}"
        path = os.pathsep.join([str(home / "custom"), os.environ.get("PYTHONPATH", os.getcwd())])
        self.environment = os.environ | {
            "PYTHONPATH": path, "TORTURE_LOG": str(self.log), MARK: self.id,
            "ABLATE_LEASE_SECONDS": f"{LEASE_SECONDS:g}", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        if clock:
            self.environment["TORTURE_CLOCK"] = "1"
        self.said: list[str] = []

    def start(self, grid: list[str] = GRID, workers: int = 4) -> "subprocess.Popen[str]":
        """Start the sweep."""
        words = [*grid, f"out={self.out}", f"hydra.launcher.n_jobs={workers}"]
        return subprocess.Popen(
            [sys.executable, "-m", "ablate", "-m", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,
        )

    def ended(self, process: "subprocess.Popen[str]", timeout: float = 900) -> int:
        """Return the exit status of a sweep; what it says on stderr is kept."""
        _, told = process.communicate(timeout=timeout)
        if told.strip():
            self.said.append(f"[{process.returncode}] {told.strip()}")
        return process.returncode

    @contextlib.contextmanager
    def watched(self, seconds: float):
        """Write what every process does into stacks.txt if the block takes longer than that."""
        late = threading.Timer(seconds, self._dump)
        late.start()
        try:
            yield
        finally:
            late.cancel()

    def _dump(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                about = f"{process.pid} {process.status()} {' '.join(process.cmdline())[-200:]}"
                with self.stacks.open("a") as file:
                    file.write(f"\n--- {time.strftime('%T')} {about}\n")
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.2)

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the bench that live."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = process.environ().get(MARK) == self.id
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if "ablate.worker" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def busy(self) -> list[psutil.Process]:
        """Return the worker processes that hold a cell now."""
        held = [one for one in leases.holders(self.out / "claims") if one.sweep]
        with contextlib.suppress(psutil.Error):
            return [psutil.Process(one.process.pid) for one in held if not one.process.has_ended]
        return []

    def alone(self) -> float:
        """Return how long it took until no process was left, at most a minute."""
        began = time.monotonic()
        while self.processes() and time.monotonic() - began < 60:
            time.sleep(0.2)
        return time.monotonic() - began

    def trained(self, kind: str = "ended") -> "collections.Counter[str]":
        """Return how often each cell was trained to its end."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return collections.Counter(line.split()[1] for line in lines if line.startswith(kind))


def records(out: Path) -> dict[str, tuple]:
    """Return all records, without what differs between two sweeps."""
    found = {}
    for folder in sorted((out / "cells").glob("[!.]*")):
        record = json.loads((folder / "record.json").read_text())
        kept = {k: v for k, v in record.items() if k not in NOISE}
        tables = [pd.read_parquet(folder / f"{n}.parquet") for n in ("items", "history")]
        found[folder.name] = (json.dumps(kept, sort_keys=True), *tables)
    return found


class Asker(threading.Thread):
    """Asks for the status again and again, and notes what of it was not true."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.out, self.asked, self.wrong = out, 0, []
        self.halt = threading.Event()

    def run(self) -> None:
        while not self.halt.wait(0.3):
            try:
                self.look()
            except UserError:  # no sweep was started there yet
                continue
            except Exception as error:
                self.wrong.append(f"status raised {type(error).__name__}: {error}")

    def look(self) -> None:
        before = {p.name for p in (self.out / "cells").glob("[!.]*")}
        found = states(self.out)
        self.asked += 1
        for one in found:
            if one.state in ("failed", "damaged"):
                self.wrong.append(f"{one.key} {one.state}: {one.detail}")
            if one.key in before and one.state == "missing":
                self.wrong.append(f"{one.key} had a record and was called missing")
            if one.state == "done" and not (self.out / "cells" / one.key / "record.json").exists():
                self.wrong.append(f"{one.key} had no record and was called done")


@contextlib.contextmanager
def asking(out: Path):
    asker = Asker(out)
    asker.start()
    try:
        yield asker
    finally:
        asker.halt.set()
        asker.join()


class Figures(dict):
    """What was counted; `must` notes what is not as it has to be."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []

    def must(self, ok: bool, text: str) -> None:
        if not ok:
            self.faults.append(text)
            print(f"FAULT {text}", flush=True)


def judge(bench: Bench, expected: dict[str, tuple], figures: Figures, *, once: bool) -> None:
    """Compare what is left of a bench with an undisturbed sweep."""
    found = records(bench.out)
    lost = sorted(set(expected) - set(found))
    wrong = [
        key
        for key, (record, *tables) in expected.items()
        if key in found
        and (
            found[key][0] != record
            or any(not a.equals(b) for a, b in zip(found[key][1:], tables, strict=True))
        )
    ]
    left = [p for p in bench.out.rglob("*") if p.name.startswith((".tmp", ".old"))]
    left += [*(bench.out / "claims").iterdir(), *(bench.out / "bundles").iterdir()]
    failures = [json.loads(p.read_text()) for p in (bench.out / "failures").glob("*.json")]
    counts = bench.trained()
    again = sum(counts.values()) - len(counts)
    for name, value in {
        "cells": len(found), "lost": len(lost), "wrong": len(wrong), "left over": len(left),
        "trainings to the end": sum(counts.values()), "of these again": again,
        "kills counted": len(failures),
    }.items():  # fmt: skip
        figures[name] = figures.get(name, 0) + value
    figures.must(not lost, f"lost: {lost}")
    figures.must(not wrong, f"wrong: {wrong}")
    figures.must(not left, f"left over: {left}")
    figures.must(not bench.processes(), "processes are left")
    figures.must(all(f["kind"] == "killed" for f in failures), f"failures: {failures}")
    if once:
        figures.must(not again, f"trained again: {[k for k, n in counts.items() if n > 1]}")
        figures.must(not failures, f"failures: {failures}")
    traces = [text for text in bench.said if "Traceback" in text]
    figures.must(not traces, f"a traceback: {traces[:1]}")


def signals(home: Path, expected: dict[str, tuple], count: int, pace: float) -> Figures:
    """Send so many signals to sweeps of four workers, `pace` times as far apart as usual."""
    figures, rng = Figures(), random.Random(count)
    sent: collections.Counter[str] = collections.Counter()
    folder = 0
    figures["status asked"], figures["commands"], slowest, ends = 0, 0, 0.0, 0.0
    while sum(sent.values()) < count:
        bench = Bench(home, f"signals-{folder}")
        folder += 1
        with asking(bench.out) as asker:
            status = -1
            while status != 0:
                process = bench.start()
                figures["commands"] += 1
                ended, asked = harass(process, bench, rng, sent, count, pace)
                with bench.watched(END_SECONDS) if asked else contextlib.nullcontext():
                    status = bench.ended(process)
                    told = time.monotonic()
                    wait = bench.alone()
                slowest = max(slowest, wait)
                if asked:
                    took = time.monotonic() - asked
                    ends = max(ends, took)
                    figures.must(took < 3 * END_SECONDS, f"{took:.0f} s to end after {ended}")
                    if took > END_SECONDS:
                        parts = f"{told - asked:.1f} s to the sweep's end, {wait:.1f} s after it"
                        print(f"slow end: {parts}, {ended}, {bench.stacks}", flush=True)
                ok = status in (0, *ended)
                figures.must(ok, f"status {status} after {ended}: {bench.said[-1:]}")
                if not ok:
                    break
                figures.must(wait < 30, f"processes lived {wait:.0f} s longer than the sweep")
        figures["status asked"] += asker.asked
        figures.must(not asker.wrong, f"status: {asker.wrong[:3]}")
        judge(bench, expected, figures, once=False)
        print(f"signals {sum(sent.values())}: {dict(sent)} {dict(figures)}", flush=True)
    figures |= {f"sent {name}": number for name, number in sorted(sent.items())}
    figures["seconds until workers noticed, at most"] = round(slowest, 1)
    figures["seconds from SIGTERM to the end, at most"] = round(ends, 1)
    return figures


def harass(process, bench, rng, sent, count, pace) -> tuple[tuple[int, ...], float]:
    """Send signals until the sweep ends; return statuses that are right, and when it was asked."""
    while process.poll() is None and sum(sent.values()) < count:
        rest = rng.choice([rng.uniform(0, 0.5), rng.uniform(0.2, 3)])
        until = time.monotonic() + pace * rest
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        workers = bench.busy() if rng.random() < 0.9 else bench.workers()
        if process.poll() is not None or not (workers or rng.random() < 0.1):
            continue
        what = rng.choice(
            ["kill worker"] * 12 + ["term worker"] * 5 + ["int worker"] * 5 + ["stop worker"] * 8
            + ["stop sweep", "kill all", "kill sweep", "term sweep", "int all", "hup sweep"]
        )  # fmt: skip
        name, target = what.split()
        number = getattr(signal, f"SIG{name.upper()}")
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if target == "worker" and workers:
                one = rng.choice(workers)
                one.send_signal(number)
                sent[what] += 1
                if name == "stop":
                    after = rng.choice([0.5, 3, 2 * LEASE_SECONDS])
                    threading.Timer(after, lambda p=one: go_on(p)).start()
            elif target == "all":
                os.killpg(process.pid, number)
                sent[what] += 1
                return (-9,) if name == "kill" else (130,), time.monotonic()
            elif target == "sweep" and name == "stop":
                process.send_signal(number)
                sent[what] += 1
                time.sleep(rng.choice([0.5, 2, 1.5 * LEASE_SECONDS]))
                process.send_signal(signal.SIGCONT)
            elif target == "sweep":
                process.send_signal(number)
                sent[what] += 1
                # Sent before its handler is there the signal ends the process at once.
                return (-number, 128 + number), time.monotonic() if name != "kill" else 0.0
    return (), 0.0


def go_on(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGCONT)


def beside(home: Path, expected: dict[str, tuple]) -> Figures:
    """Let three sweeps with wrong clocks share one folder."""
    figures, bench = Figures(), Bench(home, "beside", clock=True)
    with asking(bench.out) as asker:
        sweeps = [bench.start(workers=2) for _ in range(3)]
        statuses = [bench.ended(sweep) for sweep in sweeps]
        bench.alone()
    figures.must(statuses == [0, 0, 0], f"statuses {statuses}: {bench.said}")
    figures.must(not asker.wrong, f"status: {asker.wrong[:3]}")
    figures["status asked"] = asker.asked
    judge(bench, expected, figures, once=True)
    return figures


def ctrl_c(home: Path) -> Figures:
    """Interrupt one cell ten times."""
    figures, bench = Figures(), Bench(home, "ctrl-c")
    longest, done = 0.0, 0
    while done < 10:
        process = bench.start(LONG, workers=1)
        while process.poll() is None:
            with contextlib.suppress(UserError):
                if any(re.search(r"at step \d", s.detail) for s in states(bench.out)):
                    os.killpg(process.pid, signal.SIGINT)
                    done += 1
                    began = time.monotonic()
                    figures.must(bench.ended(process) == 130, f"statuses: {bench.said[-1:]}")
                    bench.alone()
                    longest = max(longest, time.monotonic() - began)
                    break
            time.sleep(0.2)
        else:
            figures.must(False, f"it ended before it was interrupted: {bench.said[-1:]}")
            break
    found = {s.state for s in states(bench.out)}
    figures.must("failed" not in found, f"states {found}")
    status = bench.ended(bench.start(LONG, workers=1))
    figures.must(status == 0, f"status {status}: {bench.said[-1:]}")
    failures = list((bench.out / "failures").iterdir())
    figures.must(not failures, f"failures {failures}")
    figures |= {"interruptions of one cell": done, "seconds to end, at most": round(longest, 1)}
    return figures


def disk(home: Path, expected: dict[str, tuple]) -> Figures:
    """Fill a small file system while sweeps write to it, and let it be read only."""
    figures, bench = Figures(), Bench(home, "disk")
    bench.out.mkdir()

    def mount(*options: str) -> None:
        words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(bench.out)]
        subprocess.run(words, check=True)

    mount("size=16m")
    try:
        for number, kind in enumerate(["full", "full", "read only"] * 2, 1):
            process = bench.start()
            while process.poll() is None and len(list(bench.out.glob("cells/*/*"))) < 10 * number:
                time.sleep(0.05)
            ballast = bench.out / "ballast"
            if kind == "full":
                with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
                    while stream.write(b"x" * 4096):
                        pass
            else:
                remount = ["mount", "-o", "remount,ro", str(bench.out)]
                while subprocess.run(remount, capture_output=True).returncode:
                    time.sleep(0.01)  # somebody writes
            status = bench.ended(process)
            if status != 0:
                line = bench.said[-1].partition("] ")[2]
                figures.must(status in (2, 3), f"{kind}: status {status}, {bench.said[-1]}")
                figures.must(len(line.splitlines()) == 1, f"more than a line: {line}")
                figures[f"stops, {kind}"] = figures.get(f"stops, {kind}", 0) + 1
                figures[f"{kind} says"] = line
            figures.must(not bench.processes(), "processes are left")
            figures.must(all(s.state != "failed" for s in states(bench.out)), "given up")
            if kind != "full":
                again = bench.ended(bench.start())
                figures.must(again == 2, f"read only from the start: {again} {bench.said[-1]}")
                mount("remount", "rw", "size=16m")
            ballast.unlink(missing_ok=True)
        status = bench.ended(bench.start())
        figures.must(status == 0, f"status {status}: {bench.said[-1:]}")
        figures.must(figures.get("stops, full", 0) > 1, "the disk was never full")
        judge(bench, expected, figures, once=False)
    finally:
        subprocess.run(["umount", "-l", str(bench.out)], check=True)
    return figures


def main() -> int:
    """Carry out the parts that are asked for; print their figures as JSON."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("parts", nargs="*", default=["beside", "disk", "ctrl-c", "signals"])
    asked.add_argument("--signals", type=int, default=200)
    asked.add_argument("--keep", action="store_true", help="leave the folder of results")
    given = asked.parse_args()
    for number in interrupts.SIGNALS:  # nohup, or a shell's &, may have had them ignored
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, usual)
    home, began = Path(tempfile.mkdtemp(prefix="torture-")), time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    undisturbed = Bench(home, "undisturbed")
    assert undisturbed.ended(undisturbed.start(workers=2)) == 0, undisturbed.said
    pace = max(1.0, (time.monotonic() - began) / USUAL_SECONDS)
    print(f"undisturbed {time.monotonic() - began:.0f} s", flush=True)
    expected = records(undisturbed.out)
    parts = {
        "beside": lambda: beside(home, expected),
        "disk": lambda: disk(home, expected),
        "ctrl-c": lambda: ctrl_c(home),
        "signals": lambda: signals(home, expected, given.signals, pace),
    }
    faults = []
    for name in given.parts:
        started = time.monotonic()
        figures = parts[name]()
        figures["minutes"] = round((time.monotonic() - started) / 60, 1)
        print(json.dumps({name: figures}, indent=1), flush=True)
        faults += figures.faults
    print(f"{len(faults)} faults, {(time.monotonic() - began) / 60:.0f} minutes, {home}")
    if not given.keep:
        shutil.rmtree(home, ignore_errors=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
