"""Runs that are trained and not yet scored: a folder each, as of a record, whole or not there."""

import contextlib
import os
import shutil
from pathlib import Path

from ablate.results import drafts, heart, seal
from ablate.results.files import draft_of, link, set_aside, sync
from ablate.results.log import say


def keep(folder: Path, key: str, draft: Path, *, claims: Path) -> None:
    """Keep what `draft` holds of the run `key` in `folder`, whole or not at all.

    Files are shared with the draft. Where another writer was first, his stays.

    Raises:
        LeaseLost: another process has taken the cell over, by its lease in `claims`.
    """
    folder.mkdir(exist_ok=True)
    with drafts.new(folder, key) as state:
        link(draft, state)
        drafts.write_seal(state)
        for file in (path for path in state.rglob("*") if path.is_file()):
            sync(file)  # the folders may wait: without them there is no state, not a half one
        heart.check(claims, key)
        with contextlib.suppress(OSError):  # another writer was first
            os.rename(state, folder / key)


def go_on(folder: Path, key: str, draft: Path, *, damaged: Path) -> None:
    """Put into `draft` what `keep` kept of `key`; what is damaged is moved to `damaged` instead."""
    state = folder / key
    _, fault = seal.read(state, key)
    if fault:
        place = set_aside(state, damaged)
        say(f"trained/{key} is damaged ({fault}): moved to damaged/{place.name}")
    else:
        link(state, draft)


def forget(folder: Path, key: str) -> None:
    """Remove what `keep` kept of `key`, in one step."""
    if (folder / key).exists():
        gone = draft_of(folder / f"{key}-gone")
        with contextlib.suppress(OSError):
            os.rename(folder / key, gone)
        shutil.rmtree(gone, ignore_errors=True)
