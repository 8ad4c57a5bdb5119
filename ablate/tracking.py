"""Tells experiment trackers of every cell, through accelerate: its factors, steps and scores.

A cell is one run of each tracker that was asked for (`tracker=`). A process carries out one cell at
a time; of those that train side by side each is told once it is trained, before it is scored. A
tracker that fails is left out for that cell, the others and the cell go on; one that cannot be
opened is not asked again for a while, for that may take minutes each time. Trackers are no part of
a run's identity: with and without them the same is trained.
"""

import contextlib
import fcntl
import importlib
import io
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ablate.config.build import plain, typed
from ablate.config.schema import Cell
from ablate.evaluate.scores import TaskScore
from ablate.experiment.trackers import UNREACHED, Trackers
from ablate.models.load import device_of
from ablate.results.log import say
from ablate.results.record import flattened, levels_of
from ablate.training.distributed import is_first
from ablate.training.history import Entry
from ablate.training.loop import process_accelerator

NAME = ("masking", "plw", "adapter", "rank", "dataset", "model", "seed")  # levels in a run's name
UNKNOWN = "none"  # for a setting that has no value: trackers search text and numbers
COLUMNS = ("loss", "grad_norm", "lr", "completion_grad_share")  # of a step; and each role's loss
# What trackio prints of each run though all is well; it has no setting for silence.
ANNOUNCED = re.compile(
    r"\* (Trackio (project initialized|metrics )|View dashboard|or by running in Python|psutil|"
    r"NVIDIA GPU|Apple Silicon|Created new run|Resumed existing run|Run finished)|"
    r"(\x1b\[[\d;]*m)*trackio show "
)
WAIT = 600.0  # seconds until a tracker that could not be opened is asked again

_asked = Trackers()  # of the sweep that this process works for


def ask(found: Mapping[str, Any] | None) -> None:
    """Track the cells of this process from now on as `Trackers.plain` says; None: not at all."""
    global _asked
    _asked = typed(Trackers, found) if found else Trackers()


def asked() -> Trackers:
    """Return what this process was asked for."""
    return _asked


class Track:
    """The runs of one cell in its trackers; it does nothing where none was asked for."""

    def __init__(self, accelerator: Any = None) -> None:
        """Tell the open trackers of `accelerator`."""
        self._accelerator = accelerator
        self._live = list(accelerator.trackers) if accelerator is not None else []
        self._told = self._tokens = 0

    def hear(self, history: Sequence[Entry], tokens_per_second: float | None = None) -> None:
        """Tell of the steps of a cell that were not told yet; the speed is of the last one."""
        for entry in history[self._told :] if self._accelerator is not None else ():
            self._told += 1
            self._tokens += int(entry["tokens"] or 0)
            values = _values(entry) | {"train/tokens_seen": float(self._tokens)}
            if tokens_per_second is not None and self._told == len(history):
                values["train/tokens_per_second"] = tokens_per_second
            self._log(values)

    def scores(self, found: Sequence[TaskScore]) -> None:
        """Tell of scores."""
        values = {f"score/{_word(s.task)}/{_word(s.metric)}": s.value for s in found}
        known = {name: float(v) for name, v in values.items() if v is not None}
        if known and self._accelerator is not None:
            self._log(known)

    def _log(self, values: Mapping[str, float]) -> None:
        for tracker in tuple(self._live):
            self._safely(tracker, partial(tracker.log, dict(values), step=self._told))

    def close(self, *, failed: bool = False) -> None:
        """End the runs, as failed ones where the cell failed."""
        if self._accelerator is not None:
            for tracker in self._accelerator.trackers:
                self._safely(tracker, partial(_end, tracker, failed))
            self._accelerator.trackers = []

    def _safely(self, tracker: Any, do: Callable[[], object]) -> None:
        try:
            do()
        except Exception as error:
            if tracker in self._live:
                self._live.remove(tracker)
                _give_up(tracker.name, error)


def _end(tracker: Any, failed: bool) -> None:
    """End a tracker's run. Accelerate's own `finish` knows of no failure; TensorBoard has none.

    It leaves a run of trackio its current one, which would be ended again.
    """
    if tracker.name == "trackio":
        with _unannounced():
            importlib.import_module("trackio").finish()
    elif failed and tracker.name == "mlflow":
        importlib.import_module("mlflow").end_run(status="FAILED")
    elif failed and tracker.name == "wandb":
        tracker.run.finish(exit_code=1)
    else:
        tracker.finish()


@contextlib.contextmanager
def tracked(cell: Cell, key: str) -> Iterator[Track]:
    """Give what tells of a cell while it is carried out; its runs end with the block."""
    track = Track(_opened(cell, key) if _asked.kinds and is_first() else None)
    try:
        yield track
    except BaseException:
        track.close(failed=True)
        raise
    track.close()


def _opened(cell: Cell, key: str) -> Any:
    """Return the accelerator with the trackers that could begin a run each."""
    from accelerate.tracking import filter_trackers

    _environment()
    accelerator = process_accelerator(device_of(cell.execution.device).type)
    levels = levels_of(flattened(plain(cell)), _asked.study)
    name = "-".join(_word(levels[level]) for level in NAME) + f"-{key[:8]}"
    folder = os.path.join(_asked.folder, "tensorboard", name)
    accelerator.project_configuration.logging_dir = folder
    opened: list[Any] = []
    for kind in _asked.kinds:
        mark = Path(_asked.folder) / f"{UNREACHED}{kind}"
        try:
            with _alone():  # who waited here for another's attempt knows how it ended
                if _is_new(mark):
                    continue
                mark.touch()
                accelerator.trackers = []
                accelerator.log_with = filter_trackers([kind], folder)
                with _unannounced() if kind == "trackio" else contextlib.nullcontext():
                    accelerator.init_trackers(
                        _asked.project, config=fields(cell, key), init_kwargs=_own(name, key)
                    )
                opened += accelerator.trackers
                mark.unlink(missing_ok=True)
        except Exception as error:
            _give_up(kind, error, f"nor in other cells for the next {WAIT / 60:.0f} minutes")
    accelerator.trackers = opened
    return accelerator


def _is_new(mark: Path) -> bool:
    """Return whether a process of this sweep could not open a tracker in the last `WAIT` seconds.

    Processes tell one another by a file, for a cell may have one of its own.
    """
    try:
        return time.time() - mark.stat().st_mtime < WAIT
    except OSError:
        return False


def _own(name: str, key: str) -> dict[str, dict[str, Any]]:
    """Return the arguments that a tracker has of its own."""
    tags = [_asked.study, key]
    return {
        "wandb": {"name": name, "tags": tags, "group": _asked.study, "dir": _asked.folder},
        "mlflow": {"run_name": name, "tags": {"study": _asked.study, "train_key": key}},
        "trackio": {"name": name, "group": _asked.study},
    }


def _environment() -> None:
    """Set what trackers read from the environment and nobody has set: files under the results."""
    Path(_asked.folder).mkdir(parents=True, exist_ok=True)
    for name, value in {
        "MLFLOW_TRACKING_URI": (Path(_asked.folder).resolve() / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",  # as many workers and machines write to it
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # 7 keep a cell waiting for minutes
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds
        "WANDB_SILENT": "true",  # its lines would run through the sweep's own
        "WANDB_INIT_TIMEOUT": "30",  # seconds
    }.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other workers of this machine out: two would make one experiment twice."""
    with (Path(_asked.folder) / ".lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _unannounced() -> Iterator[None]:
    """Keep from standard output what `ANNOUNCED` names; all else is printed."""
    with contextlib.redirect_stdout(_Unannounced(sys.stdout)) as lines:
        try:
            yield
        finally:
            lines.close()


class _Unannounced(io.StringIO):
    """Hands lines on to another stream but those that announce."""

    def __init__(self, to: TextIO) -> None:
        super().__init__()
        self.to, self._begun = to, ""

    def write(self, text: str) -> int:
        """Hand on the lines that `text` ends."""
        *lines, self._begun = (self._begun + text).split("\n")
        self.to.write("".join(f"{line}\n" for line in lines if not ANNOUNCED.match(line)))
        return len(text)

    def close(self) -> None:
        """Hand on what has no end."""
        self.to.write("" if ANNOUNCED.match(self._begun) else self._begun)
        super().close()


def _give_up(kind: str, error: Exception, more: str = "") -> None:
    where = f"NOT TRACKED by {kind} from here on{f', {more}' if more else ''}"
    line = f"{where}: {type(error).__name__}: {' '.join(str(error).split())}"
    say(line)
    print(line, file=sys.stderr)


def fields(cell: Cell, key: str) -> dict[str, bool | float | int | str]:
    """Return what a run can be searched by: its levels by their names, and every setting."""
    settings = flattened(plain(cell))
    found = settings | levels_of(settings, _asked.study) | {"train_key": key}
    return {
        name: value if isinstance(value, bool | float | int | str) else _text(value)
        for name, value in found.items()
    }


def _text(value: object) -> str:
    return UNKNOWN if value is None else str(value)


def _word(value: object) -> str:
    """Return a value as a part of a name that every tracker and file system takes."""
    return re.sub(r"[^\w.]+", "_", _text(value)).strip("_")


def _values(entry: Entry) -> dict[str, float]:
    roles = [name for name in entry if name.startswith("loss_")]
    known = {name: entry.get(name) for name in (*COLUMNS, *roles)}
    numbers = {name: float(value) for name, value in known.items() if value is not None}
    return {f"train/{name}": value for name, value in numbers.items() if not math.isnan(value)}
