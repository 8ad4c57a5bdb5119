"""Folders and files that appear whole or not at all: links, swaps, and what the umask allows.

Nothing here knows what a record is.
"""

import contextlib
import ctypes
import hashlib
import os
import shutil
import sys
from pathlib import Path

from ablate.results.process import here

DRAFT = ".tmp-"  # begins the name of what is half written; who writes it follows
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
OLD = ".old-"  # begins the name of a folder while another takes its place without an exchange


def draft_of(path: Path) -> Path:
    """Return the name under which this process writes what `path` is to be the name of."""
    return path.with_name(f"{DRAFT}{here().mark}-{path.name}")


def sync(path: Path) -> None:
    """Flush a file or folder to the disk: what has its name must survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link(source: Path, target: Path) -> None:
    """Make the files under `source` files under `target` too: links, or copies where need be."""
    for path in source.rglob("*"):
        made = target / path.relative_to(source)
        if path.is_dir():
            made.mkdir(parents=True, exist_ok=True)
            continue
        if not path.is_file():  # a broken link, a pipe: nothing that is to be kept
            continue
        made.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, made)
        except OSError:  # a file system without links
            shutil.copy2(path, made)


def copy(source: Path, target: Path) -> None:
    """Copy a file, or the files under a folder, with their times of change.

    Permissions are those of new files and folders: what another keeps read-only is ours to change.
    """
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            copy(path, target / path.name)
    elif source.is_file():  # no pipe, no link to nothing
        shutil.copyfile(source, target)
        found = source.stat()
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def write(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all.

    Args:
        path: of the file.
        content: of it.
        durable: flush it to the disk; not needed in a draft that is flushed as a whole.

    Raises:
        OSError: also where something that is no file has its name.
    """
    draft = draft_of(path)
    try:
        draft.write_bytes(content)
        if durable:
            sync(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def open_up(folder: Path) -> None:
    """Give every file under `folder` the permissions of a new one, which libraries withhold.

    The folder was made under the user's umask, so its own permissions show it.
    """
    mode = folder.stat().st_mode & 0o666
    for path in (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        if path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


def free_name(folder: Path, name: str) -> Path:
    """Return `folder`/`name`, or with the first number after it that is free."""
    number, path = 1, folder / name
    while os.path.lexists(path):
        number += 1
        path = folder / f"{name}-{number}"
    return path


def set_aside(path: Path, folder: Path, name: str = "") -> Path:
    """Return where `path`, whatever it is, was moved to: under a free name in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        place = free_name(folder, name or path.name)
        with contextlib.suppress(FileExistsError):
            os.rename(path, place)
            return place


def swap(draft: Path, place: Path) -> None:
    """Give the folder `draft` the name `place`, and what has that name the draft's, in one step.

    Where the system cannot exchange two names, `place` is missing for an instant. A kill then
    leaves it as `OLD` + its name, and `put_back` gives it its name again.
    """
    if not _exchange(draft, place):
        old = place.with_name(f"{OLD}{place.name}")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(place, old)
        os.rename(draft, place)
        os.rename(old, draft)
    sync(place.parent)


def put_back(folder: Path) -> None:
    """Give their names again to folders of which a kill in `swap` left the old ones alone."""
    for old in folder.glob(f"{OLD}*"):
        place = folder / old.name.removeprefix(OLD)
        if os.path.lexists(place):
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, place)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return whether the system could."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    names = (os.fsencode(one), os.fsencode(other))
    return bool(call(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0)
