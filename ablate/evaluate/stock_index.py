"""The tasks, groups and tags that lm-eval ships, by name and without torch.

Reading all of lm-eval's task files takes ten seconds: what they say is kept in the cache, one file
per lm-eval version.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any

from ablate.paths import cache_dir

# The file of a task, relative to lm-eval's folder; of a group or tag the tasks that are in it.
Index = dict[str, str | list[str]]


def folder() -> Path:
    """Return the folder of lm-eval's task files."""
    spec = util.find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


@functools.cache
def index() -> Index:
    """Return every name that lm-eval ships, each with its file or with its tasks."""
    file = cache_dir() / f"lm_eval-{metadata.version('lm_eval')}-index.json"
    if not file.is_file():
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        found = _read()
        try:
            draft.write_text(json.dumps(found))
            os.replace(draft, file)
        except OSError:  # a cache that cannot be written only costs time
            return found
    known: Index = json.loads(file.read_text())
    return known


def _read() -> Index:
    from lm_eval.tasks._index import Kind, TaskIndex  # a second, and no torch

    found: Index = {}
    entries = TaskIndex.build([folder()])
    for name, entry in entries.items():
        single = entry.kind in (Kind.TASK, Kind.PY_TASK) and entry.yaml_path is not None
        if single:
            found[name] = str(entry.yaml_path.relative_to(folder()))
        else:
            found[name] = list(dict.fromkeys(_members(name, entries)))
    return found


def _members(name: str, entries: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tasks in a group or tag as lm-eval's `TaskFactory` builds them; else the task."""
    entry = entries[name]
    if entry.kind.name == "TAG":
        yield from sorted(task for task in entry.tags if task in entries)
    elif entry.kind.name == "GROUP":
        yield from _listed(name, entry.cfg or {}, entries)
    else:
        yield name


def _listed(group: str, settings: Mapping[str, Any], entries: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tasks in the list of a group, in which groups and tasks may be written out."""
    listed = settings.get("task")
    for one in listed if isinstance(listed, list) else ():
        inner = isinstance(one, Mapping) and "group" in one
        name = one.get("group" if inner else "task") if isinstance(one, Mapping) else one
        if not isinstance(name, str):  # lm-eval itself refuses such a group
            continue
        if name in entries:
            yield from _members(name, entries)
        elif inner:
            yield from _listed(f"{group}::{name}", one, entries)
        else:
            yield f"{group}::{name}"
