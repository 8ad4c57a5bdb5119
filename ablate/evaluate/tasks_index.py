"""Which benchmarks and measures there are, by name and without torch, so that a grid is checked
before its first cell trains.

A task is one of three: a task of the micro world; a path to a task file or a folder of them in
lm-eval's YAML format; or a name that lm-eval ships (task, group or tag; `stock_index`).
"""

import csv
import functools
import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml

from ablate import hub
from ablate.config.yaml_size import check_yaml_size
from ablate.errors import UserError, brief, nearest, unknown
from ablate.evaluate import stock_index
from ablate.micro import exercises, tasks
from ablate.paths import check_file, check_name
from ablate.results.files import sha256

MEASURES: dict[str, str] = {
    "weight_distance": "how far the weights moved from the base, relative Frobenius norm",
    "weight_spectrum": "of how high a rank the change of the weights is, by kind of matrix",
    "spectrum_counts": "singular values of the change above a threshold, by kind of matrix",
    "memorised": "characters of the training answers that come back in their place",
    "prompt_bleu": "memorisation: BLEU of the answers to training prompts",
    "generation_length": "tokens generated on held-out prompts",
    "train_loss_rsd": "relative standard deviation of the training loss over steps",
}
OF_THE_MICRO_WORLD = (*tasks.TASKS, *exercises.TASKS)
TASK_FILES = (".yaml", ".yml")
OURS = "micro_"  # nothing that lm-eval ships is called so: a slip is told at once
TEXTS = ("doc_to_text", "doc_to_target", "doc_to_choice", "description")  # name no files
FOLDERS = ("dataset_path", "dataset_name", "data_dir")  # may name a folder of rows
LONGEST_PATH = 1024
MOST_FILES = 100_000  # of a folder that is searched for task files
CONTENT = (*TASK_FILES, ".py", ".json", ".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the name of a task leads."""

    kind: Literal["micro", "path", "task", "group"]  # the last two are lm-eval's own
    name: str
    path: Path | None = None  # of a task file, or a folder of them


def known_tasks() -> tuple[str, ...]:
    """Return every name that `evaluate.tasks` takes, the micro world's first."""
    return (*OF_THE_MICRO_WORLD, *stock_index.index())


def check_tasks(names: Iterable[str], *, run_code: bool = False) -> None:
    """Check every name of `evaluate.tasks`; loads no data and no torch.

    Raises:
        UserError: an unknown task, a path without a usable task file, or a task that runs what the
            model writes without the consent `run_code`.
    """
    for name in names:
        source = find(name)
        if not run_code and source.kind == "task" and task_settings(source.path).get("unsafe_code"):
            raise runs_code(name)


def running_code(names: Iterable[str]) -> list[str]:
    """Return those benchmarks that run what the model writes; of groups it is not known."""
    found = []
    for name in names:
        source = find(name)
        if source.path is None or source.kind not in ("task", "path"):
            continue
        if any(task_settings(file).get("unsafe_code") for file in task_files(source.path)):
            found.append(name)
    return found


def runs_code(name: str) -> UserError:
    """Return the error of a task that runs what the model writes, without consent to it."""
    return UserError(
        f"evaluate.tasks={name}: runs code that the model writes, on this machine; "
        "evaluate.run_code=true consents to it"
    )


def check_data(names: Iterable[str]) -> None:
    """Check that the rows of lm-eval's tasks may be had, before anything is trained.

    Raises:
        UserError: they are in no cache here and the hub cannot be reached.
    """
    for name in names:
        source = find(name)
        rows = task_settings(source.path).get("dataset_path") if source.kind == "task" else None
        if isinstance(rows, str) and "/" in rows:  # others are file formats
            hub.check_data(f"evaluate.tasks={name}: {rows}", rows)


@functools.cache
def published() -> dict[str, dict[str, str]]:
    """Return what is known of lm-eval's common tasks without their data.

    Of each its file, its items, the number of tasks that they are in, and their source.
    """
    with Path(__file__).with_name("stock.csv").open(encoding="utf-8", newline="") as stream:
        return {row["task"]: row for row in csv.DictReader(stream)}


@functools.cache
def task_settings(file: Path) -> dict[str, Any]:
    """Return what a task file says, with what it includes."""
    own: dict[str, Any] = {}
    for each in _with_included(file):
        own = each | own
    return own


def _with_included(file: Path) -> Iterator[dict[str, Any]]:
    """Yield what a task file says, then what the file that it includes says, and so on.

    Raises:
        UserError: one of them is broken, not there, or includes itself.
    """
    seen: list[Path] = []
    while file not in seen:
        seen.append(file)
        own = _read(file)
        yield own
        if own.get("include") is None:
            return
        if not isinstance(own["include"], str):
            raise UserError(f"evaluate.tasks={file}: include={own['include']}: must be a file")
        above = (file.parent / own["include"]).resolve()
        check_file(f"evaluate.tasks={file}: include", above)
        file = above
    raise UserError(f"evaluate.tasks={file}: includes itself")


def check_measures(names: Iterable[str]) -> None:
    """Check every name of `evaluate.measures`.

    Raises:
        UserError: an unknown measure.
    """
    for name in names:
        if name not in MEASURES:
            raise unknown("evaluate.measures", name, MEASURES)


def find(name: str) -> Source:
    """Return where the task `name` leads.

    Raises:
        UserError: it leads nowhere.
    """
    if name in OF_THE_MICRO_WORLD:
        return Source("micro", name)
    if os.sep in name or name.endswith(TASK_FILES):
        return _find_path(name)
    common = published().get(name)
    if common and not common["file"]:
        return Source("group", name)
    folder = stock_index.folder()
    if common and (folder / common["file"]).is_file():  # the whole index takes seconds
        return Source("task", name, folder / common["file"])
    stock = {} if name.startswith(OURS) else stock_index.index()
    if name in stock:
        file = stock[name]
        if isinstance(file, str):
            return Source("task", name, folder / file)
        return Source("group", name)
    raise UserError(
        f"evaluate.tasks={name}: no such task; give one of {', '.join(OF_THE_MICRO_WORLD)}, a "
        "task of lm-eval or a path to a task file."
        f"{nearest(name, OF_THE_MICRO_WORLD) or nearest(name, stock)}"
    )


def parts(name: str) -> tuple[str, ...]:
    """Return the names of lm-eval's tasks that a benchmark stands for, as its scores have them."""
    source = find(name)
    if source.kind == "group":
        return tuple(stock_index.index()[name])
    if source.kind == "path" and source.path is not None:
        return tuple(task_names(source.path))
    return (name,)


def task_label(name: str) -> str:
    """Return what a score key calls a task: its name, of a user's file or folder without its place.

    What the file says is in `task_version`, so that a score does not depend on where it lay.
    """
    source = find(name)
    return name if source.path is None else source.path.name


def task_version(name: str) -> str:
    """Return what stands for the version of a task in its score key.

    The micro world states its own, a user's task file counts with the files that it names, and
    what lm-eval ships changes with lm-eval.
    """
    source = find(name)
    if source.kind == "micro":
        own = exercises if name in exercises.TASKS else tasks
        return f"micro-{own.version()}"
    if source.kind == "path" and source.path is not None:
        return f"files-{_files_hash(source.path)}"
    return f"lm_eval-{metadata.version('lm_eval')}"


def task_names(path: Path) -> list[str]:
    """Return the tasks that a task file, or the task files of a folder, define.

    Raises:
        UserError: a broken file, or none that defines a task.
    """
    return [str(_read(file)["task"]) for file in task_files(path)]


def task_files(path: Path) -> list[Path]:
    """Return the files of `task_names`: the one file, or those of a folder that define a task."""
    files = [path] if path.is_file() else sorted(f for s in TASK_FILES for f in path.rglob(f"*{s}"))
    found = [file for file in files if isinstance(_read(file).get("task"), str)]
    if not found:
        raise UserError(f"evaluate.tasks={path}: no YAML file with a `task:` name in it")
    return found


def _find_path(name: str) -> Source:
    check_name("evaluate.tasks", name)
    path = Path(name).expanduser().resolve()
    if not path.exists():
        raise UserError(f"evaluate.tasks={name}: no such file or folder")
    if not path.is_file() and not path.is_dir():
        raise UserError(f"evaluate.tasks={name}: is neither a file nor a folder")
    if path.is_dir() and _holds_more(path, MOST_FILES):
        raise UserError(
            f"evaluate.tasks={name}: holds more than {MOST_FILES:,} files; name the folder of the "
            "task files alone"
        )
    for file in task_files(path):
        task_settings(file)
    return Source("path", name, path)


def _holds_more(folder: Path, most: int) -> bool:
    """Return whether there are more than so many files and folders under `folder`."""
    count = 0
    for _, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        if count > most:
            return True
    return False


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's YAML without importing the functions that it names."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


def _read(file: Path) -> dict[str, Any]:
    check_file("evaluate.tasks", file)
    try:
        text = file.read_text(encoding="utf-8")
        check_yaml_size(f"evaluate.tasks={file}", text)
        found = yaml.load(text, Loader=_Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        first = " ".join(str(error).split())
        raise UserError(f"evaluate.tasks={file}: not a task file ({brief(first, 200)})") from None
    return found if isinstance(found, dict) else {}


@functools.lru_cache(maxsize=64)
def _files_hash(path: Path) -> str:
    digest = hashlib.sha256(path.name.encode())
    content = {(f.name, sha256(f)) for f in _used(path)}
    for name, own in sorted(content):
        digest.update(f"{name}\0{own}\0".encode())
    return digest.hexdigest()[:16]


def _used(path: Path) -> set[Path]:
    """Return the files that a score on a task file, or on a folder of them, depends on.

    Task files, those that they include, rows on this machine and Python modules beside them. What
    else lies in the folder does not count: results may be written there.
    """
    left = [path] if path.is_file() else [f for f in path.rglob("*") if f.suffix in TASK_FILES]
    used: set[Path] = set()
    while left:
        file = left.pop()
        if file in used or not file.is_file():
            continue
        used.add(file)
        if file.suffix in TASK_FILES:
            left += [*file.parent.glob("*.py"), *_named(_read(file), file.parent)]
    return used


def _named(value: Any, folder: Path, key: str = "") -> Iterator[Path]:
    """Yield the files that a task file names, beside it or from the working folder."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _named(each, folder, str(name))
    elif isinstance(value, list):
        for each in value:
            yield from _named(each, folder, key)
    elif isinstance(value, str) and value and key not in TEXTS and len(value) < LONGEST_PATH:
        for place in (folder, Path.cwd()):
            for found in map(Path, glob.glob(os.path.join(glob.escape(str(place)), value))):
                if found.is_dir() and key in FOLDERS:
                    yield from (f for f in found.rglob("*") if f.suffix in CONTENT)
                elif found.is_file():
                    yield found
