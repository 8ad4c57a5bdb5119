"""Ways in which a folder of results can be hurt, each a name and what it does to a file."""

import json
import os
import shutil


def _truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _flip(path):
    """Change one byte in the middle, and neither the size nor the time of change."""
    content, when = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns + 1_000_000_000))


def _folder(path):
    path.unlink()
    path.mkdir()
    (path / "stray").write_text("x")


def _linked(path, target):
    path.unlink()
    path.symlink_to(target)


def _link_to_another(path):
    other = path.with_name("another.tmp")
    other.write_text("another file")
    _linked(path, other)


def _version(path):
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = {}
    path.write_text(json.dumps((found if isinstance(found, dict) else {}) | {"schema": 99}))


def _fifo(path):
    path.unlink()
    os.mkfifo(path)


WAYS = {
    "truncated": _truncate,
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "other JSON": lambda path: path.write_text('{"a": [1, 2]}'),
    "no JSON": lambda path: path.write_bytes(b"\xff\xfe{["),
    "deep JSON": lambda path: path.write_text("[" * 100_000),
    "a folder": _folder,
    "a broken link": lambda path: _linked(path, "/nowhere/at/all"),
    "a link to itself": lambda path: _linked(path, path.name),
    "a link to another file": _link_to_another,
    "another version": _version,
    "one byte changed": _flip,
    "a pipe": _fifo,
}


def _stray_file(out, key):
    shutil.rmtree(out / "cells" / key)
    (out / "cells" / key).write_text("stray")


def _stray_folder(out, key):
    shutil.rmtree(out / "cells" / key)
    (out / "cells" / key / "deep").mkdir(parents=True)
    (out / "cells" / key / "deep" / "stray").write_text("stray")


def _another_run(out, key):
    other = next(p for p in (out / "cells").iterdir() if p.name != key)
    shutil.rmtree(out / "cells" / key)
    shutil.copytree(other, out / "cells" / key)


def _broken_cell_link(out, key):
    shutil.rmtree(out / "cells" / key)
    (out / "cells" / key).symlink_to("/nowhere/at/all")


def _replaced(name):
    def damage(out, _):
        shutil.rmtree(out / name)
        (out / name).write_text("stray")

    return damage


def _failure(text):
    def damage(out, key):
        (out / "failures").mkdir(exist_ok=True)
        (out / "failures" / f"{key}-0.json").write_text(text)

    return damage


# What is done to the folder as a whole; True where a run is to be trained again.
WHOLE = {
    "a file in place of a cell": (_stray_file, True),
    "a folder in place of a cell": (_stray_folder, True),
    "another run in place of a cell": (_another_run, True),
    "a broken link in place of a cell": (_broken_cell_link, True),
    "an empty cell": (lambda out, key: [f.unlink() for f in _all(out, key)], True),
    "a file in place of the designs": (_replaced("designs"), False),
    "a file in place of the failures": (_replaced("failures"), False),
    "a file in place of the trained runs": (_replaced("trained"), False),
    "stray files": (lambda out, key: [(f / "stray").write_text("x") for f in _dirs(out)], False),
    "a failure that is empty": (_failure(""), False),
    "a failure that is other JSON": (_failure("[1]"), False),
    "a failure without a number": (
        lambda out, key: (out / "failures" / f"{key}-x.json").write_text("{}"), False
    ),
}  # fmt: skip


def _all(out, key):
    return [path for path in (out / "cells" / key).rglob("*") if path.is_file()]


def _dirs(out):
    return [out, *(path for path in out.rglob("*") if path.is_dir() and path.name != "claims")]
