"""How far off the time left of a sweep is: sweeps that were carried out, played back.

    python -m benchmarks.time_left [--note TEXT] [FOLDER | NAME,...=FOLDER ...]

Reads when the runs of each folder of results ended, what they took and in which process, adds them
to benchmarks/sweep_timings.csv in the place of an earlier sweep of that name, plays all sweeps of
that file back and writes benchmarks/time_left.csv, from which docs/running.md quotes:

    sweep, machine, runs, workers
    share     of the sweep's time, from the beginning of its first run to the end of its last
    error     the time left as the sweep would have said it then, over what was left, less 1
    alike     how many times as long runs of the same adapter, model and operations took before that
              moment as after it: 1 where the machine was the same; empty where there are none

Each sweep is played as one of an empty folder: the plan's seconds are those of sizes alone
(`experiment.pace`). A process takes its runs one after the other, so one begins where that before
it ended. A folder in which several sweeps were carried out, one after the other, has a moment
without any process between them and is split there, into as many as have names; a part of fewer
than `FEWEST` runs is left out. A sweep that has not ended does not belong here.
"""

import argparse
import csv
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ablate.experiment.pace import FLOPS_PER_SECOND, ended, process_of, sample
from ablate.experiment.time_left import Expected, HowFar, TimeLeft

HERE = Path(__file__).parent
TIMINGS = HERE / "sweep_timings.csv"
ERRORS = HERE / "time_left.csv"
SHARES = (0.1, 0.25, 0.5)
FEWEST = 10  # runs: of fewer a tenth is no run
THIRD = 1 / 3


@dataclass(frozen=True, slots=True)
class Run:
    """A run that was carried out: seconds since the sweep's first began, and its operations."""

    worker: int
    began: float
    ended: float
    train: float  # seconds
    score: float
    kind: str  # of runs that have one pace: adapter, base parameters
    train_gflop: float
    score_gflop: float

    @property
    def beside(self) -> float:
        """Seconds that it took beside training and scoring."""
        return max(0.0, self.ended - self.began - self.train - self.score)


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep that was carried out."""

    name: str
    machine: str
    runs: tuple[Run, ...]

    @property
    def seconds(self) -> float:
        """From the beginning of its first run to the end of its last."""
        return max(run.ended for run in self.runs)

    @property
    def workers(self) -> int:
        """How many processes were at work at once, at most."""
        spans: dict[int, list[float]] = defaultdict(list)
        for run in self.runs:
            spans[run.worker] += [run.began, run.ended]
        ends = [(min(one), max(one)) for one in spans.values()]
        return max(sum(a <= at < b for a, b in ends) for at, _ in ends)


def time_left(runs: Sequence[Run], workers: int, now: float) -> float:
    """Return the seconds left as a sweep says them at `now`, from what it had seen by then."""
    rate = FLOPS_PER_SECOND / 1e9
    planned = {
        str(n): Expected((run.kind,), run.train_gflop / rate, run.score_gflop / rate, 0.0)
        for n, run in enumerate(runs)
    }
    left, running = TimeLeft(planned, workers=workers), dict[str, HowFar]()
    for number, run in sorted(enumerate(runs), key=lambda one: one[1].ended):
        key, spent = str(number), now - run.began
        if run.ended <= now:
            left.took(key, run.train, run.score, run.beside)
        elif spent >= run.train:
            running[key] = HowFar(scoring=True, waited=spent - run.train)
        elif spent >= 0:
            running[key] = HowFar(spent / run.train, run.train)
    todo = [number for number, run in enumerate(runs) if run.ended > now]
    order = sorted(todo, key=lambda number: runs[number].began)
    return left.left([[str(number)] for number in order], running)


def error(sweep: Sweep, share: float) -> float:
    """Return how far the time left is off after such a share of a sweep, over what was left."""
    now = share * sweep.seconds
    return time_left(sweep.runs, sweep.workers, now) / (sweep.seconds - now) - 1


def alike(sweep: Sweep, share: float) -> float | None:
    """Return how many times as long like runs took until a moment of a sweep as after it."""
    now = share * sweep.seconds
    found: dict[object, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for run in sweep.runs:
        same = run.kind, run.train_gflop, run.score_gflop
        found[same][run.ended > now].append(run.train + run.score)
    both = [(a, b) for a, b in found.values() if a and b]
    if not both:
        return None
    return sum(statistics.fmean(a) * len(b) for a, b in both) / sum(sum(b) for _, b in both)


def sweeps(path: Path = TIMINGS) -> dict[str, Sweep]:
    """Return the sweeps of a file of timings by name."""
    found: dict[tuple[str, str], list[Run]] = defaultdict(list)
    with path.open() as lines:
        for row in csv.DictReader(lines):
            place = row.pop("sweep"), row.pop("machine")
            worker, kind = int(row.pop("worker")), row.pop("kind")
            found[place].append(Run(worker, kind=kind, **{k: float(v) for k, v in row.items()}))
    return {name: Sweep(name, machine, tuple(runs)) for (name, machine), runs in found.items()}


def carried_out(records: Iterable[dict[str, Any]]) -> list[list[Run]]:
    """Return the runs of each sweep of the records of a folder, sweep by sweep in time."""
    by_process: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if ended(record):
            by_process[process_of(record)].append(record)
    processes = [_of_process(sorted(own, key=ended)) for own in by_process.values()]
    parts: list[list[list[Run]]] = []
    last = float("-inf")
    for own in sorted(processes, key=lambda runs: runs[0].began):
        if own[0].began >= last:
            parts.append([])
        parts[-1].append(own)
        last = max(last, own[-1].ended)
    return [_numbered(part) for part in parts]


def _of_process(records: Sequence[dict[str, Any]]) -> list[Run]:
    """Return the runs of a process, in the order of their ends; times are those of the clock.

    What the first took beside training and scoring is not recorded: it is taken to be usual.
    """
    found = []
    since = None
    for record in records:
        spent = sample(record, 0.0)
        train, score, at = spent.train_seconds, spent.eval_seconds, ended(record)
        kind = f"{record['config']['adapter']['kind']} {record['parameters']['base']}"
        began = at - train - score if since is None else since
        gflop = spent.train_flops / 1e9, spent.eval_flops / 1e9
        found.append(Run(0, began, at, train, score, kind, *gflop))
        since = at
    first, *others = found
    usual = statistics.median(run.beside for run in others) if others else 0.0
    return [_moved(first, 0, -usual, 0.0), *others]


def _moved(run: Run, worker: int, began: float, end: float) -> Run:
    return Run(worker, run.began + began, run.ended + end, *astuple(run)[3:])


def _numbered(processes: Sequence[Sequence[Run]]) -> list[Run]:
    zero = min(run.began for own in processes for run in own)
    runs = [_moved(run, n, -zero, -zero) for n, own in enumerate(processes) for run in own]
    return sorted(runs, key=lambda run: run.began)


def of_folder(names: Sequence[str], folder: Path) -> list[Sweep]:
    """Return the sweeps of a folder of results, by names in time; without enough, numbered."""
    records = [json.loads(path.read_text()) for path in folder.glob("cells/*/record.json")]
    hardware = [record["provenance"].get("hardware", {}) for record in records]
    machines = sorted({f"{one['cores']} x {_plain(one['processor'])}" for one in hardware if one})
    parts = [runs for runs in carried_out(records) if len(runs) >= FEWEST]
    if len(names) < len(parts):
        names = [f"{names[0]}_{n}" for n, _ in enumerate(parts, 1)]
    return [
        Sweep(own, " and ".join(machines), tuple(runs))
        for own, runs in zip(names, parts, strict=False)
    ]


def _plain(processor: str) -> str:
    """Return the name of a processor without marks."""
    return re.sub(r"\((R|TM)\)|\bProcessor\b|\bCPU\b", "", processor).strip()


def write(found: Iterable[Sweep]) -> None:
    """Write the runs of sweeps, and how far off the time left was."""
    known = list(found)
    columns = [one.name for one in fields(Run)]
    with TIMINGS.open("w", newline="") as lines:
        rows = csv.writer(lines, lineterminator="\n")
        rows.writerow(["sweep", "machine", *columns])
        for sweep in known:
            for run in sweep.runs:
                rows.writerow([sweep.name, sweep.machine, *map(_short, astuple(run))])
    with ERRORS.open("w", newline="") as lines:
        rows = csv.writer(lines, lineterminator="\n")
        rows.writerow(["sweep", "machine", "runs", "workers", "share", "error", "alike"])
        for sweep in sweeps().values():  # as they are read again, rounded
            about = sweep.name, sweep.machine, len(sweep.runs), sweep.workers
            for share in SHARES:
                same = alike(sweep, share)
                told = "" if same is None else f"{same:.2f}"
                rows.writerow([*about, share, f"{error(sweep, share):.3f}", told])


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def table() -> str:
    """Return the table of docs/running.md: how far off the time left was, by share and machine."""
    with ERRORS.open() as lines:
        rows = list(csv.DictReader(lines))
    machines = list(dict.fromkeys(row["machine"] for row in rows))[::-1]  # the newest first
    heads = ["of the sweep's time"]
    for machine in machines:
        count = len({row["sweep"] for row in rows if row["machine"] == machine})
        heads += [f"{count} sweeps, {machine}: median error", "within a third"]
    text = f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|\n"
    for share in SHARES:
        text += f"| after {share:.0%}"
        for machine in machines:
            own = [r for r in rows if r["machine"] == machine and float(r["share"]) == share]
            errors = [abs(float(row["error"])) for row in own]
            within = sum(one <= THIRD for one in errors)
            text += f" | {statistics.median(errors):.0%} | {within} of {len(errors)}"
        text += " |\n"
    return text.replace("%", " %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", metavar="FOLDER")
    parser.add_argument("--note", help="of the machine, such as what else it did meanwhile")
    options = parser.parse_args()
    known = sweeps()
    for text in options.folders:
        names, _, folder = text.rpartition("=")
        for one in of_folder((names or Path(folder).name).split(","), Path(folder)):
            about = ", ".join(filter(None, (one.machine, options.note)))
            known[one.name] = replace(one, machine=about)
    write(known.values())
    print(ERRORS.read_text())
    print(table())
