"""Drafts: what is being written. Its name tells its writer, so that a dead one's is removed."""

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ablate.results import leases, process, seal
from ablate.results.files import DRAFT, draft_of, open_up, sync, write
from ablate.results.record import RECORD, text

DRAFT_SECONDS = 86400.0  # after which a file that another machine has not finished is left over


@contextlib.contextmanager
def new(parent: Path, key: str) -> Iterator[Path]:
    """Give a new folder in `parent` whose name tells its writer; it is removed at the end."""
    draft = draft_of(parent / f"{key}-{secrets.token_hex(4)}")
    draft.mkdir()  # under the user's umask
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def finish(draft: Path) -> None:
    """Make the draft of a record ready for its place: sealed, and on the disk."""
    write_seal(draft)
    flush(draft)


def write_seal(draft: Path) -> None:
    """Write into the record in `draft` what its files are, and give these the user's umask."""
    open_up(draft)
    record = json.loads((draft / RECORD).read_text())
    write(draft / RECORD, text(seal.sealed(record, draft)), durable=False)


def flush(draft: Path) -> None:
    """Flush `draft` to the disk; what has a second link `trained.keep` has flushed already."""
    for file in draft.rglob("*"):
        if file.is_dir() or file.stat().st_nlink == 1:
            sync(file)
    sync(draft)


def of(folders: Iterable[Path], key: str, mark: str) -> list[Path]:
    """Return the drafts for `key` in `folders` of the process with `mark`."""
    return [draft for folder in folders for draft in folder.glob(f"{DRAFT}{mark}-{key}-*")]


def is_abandoned(draft: Path, claims: Path) -> bool:
    """Return whether the writer of a draft, which its name tells, is dead or was taken over.

    On another machine a folder's writer is who holds its cell; a file is written in an instant.
    """
    mark, _, rest = draft.name.removeprefix(DRAFT).partition("-")
    writer = process.of_mark(mark)
    if writer is None or writer.has_ended:
        return True
    if writer.is_here:
        return False
    if not draft.is_dir():
        return _age(draft) > DRAFT_SECONDS
    holder = leases.living(claims, rest.partition("-")[0])
    return holder is None or holder.process.mark != mark


def _age(path: Path) -> float:
    """Return how old a file is, in seconds of the file system's own clock."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=DRAFT) as made:
        try:
            return os.stat(made.name).st_mtime - path.stat().st_mtime
        except FileNotFoundError:
            return 0.0


def remove(draft: Path) -> None:
    """Remove a draft, a folder or a file."""
    if draft.is_dir():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        draft.unlink(missing_ok=True)
