"""Where the configuration tree and the cache are, in a checkout and in an installed wheel."""

import errno
import os
from pathlib import Path

from ablate.errors import UserError, brief

LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, of Linux


def conf_dir() -> Path:
    """Return the folder of the configuration tree: inside the package, or beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def in_checkout() -> bool:
    """Return whether the configuration tree is a checkout's, not inside an installed package."""
    return conf_dir().parent != Path(__file__).resolve().parent


def check_path(setting: str, path: str | Path) -> None:
    """Check that a file may have this path: 255 bytes a name, 4,095 in all; no file is asked for.

    Raises:
        UserError: it is too long.
    """
    names = [len(name) for name in os.fsencode(path).split(b"/")]
    if max(names) > LONGEST_NAME or sum(names) + len(names) > LONGEST_PATH:
        raise UserError(f"{setting}={brief(path)}: is too long for the path of a file")


def check_name(setting: str, path: str | Path) -> None:
    """Check that `path`, which `setting` names, can be asked for: names may have 255 bytes.

    Raises:
        UserError: it is too long, has a NUL in it, or is a link to itself.
    """
    check_path(setting, path)
    try:
        os.stat(path)
    except ValueError:
        raise UserError(f"{setting}={brief(path)}: is no path: it has a NUL in it") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            reason = os.strerror(error.errno).lower()
            raise UserError(f"{setting}={brief(path)}: cannot be read ({reason})") from None


def check_there(setting: str, path: str | Path) -> None:
    """Check that `path`, which `setting` names, is there, before what reads it is imported.

    Raises:
        UserError: it is not.
    """
    check_name(setting, path)
    if not os.path.exists(path):
        raise UserError(f"{setting}={path}: no such file or folder")


def check_results(folder: str | Path) -> None:
    """Check that a folder of results is there, before what reads it is imported.

    Raises:
        UserError: it is not.
    """
    if not os.path.isdir(folder):
        raise UserError(
            f"{folder}: no folder of results; `ablate sweep out={folder} ...` makes one"
        )


def check_file(setting: str, path: str | Path) -> None:
    """Check that `path`, which `setting` names, is a file whose bytes can be read to an end.

    A pipe or a device may have no end, and cannot be read twice.

    Raises:
        UserError: it is none.
    """
    check_name(setting, path)
    if os.path.isfile(path):
        return
    if os.path.isdir(path):
        raise UserError(f"{setting}={path}: is a folder, not a file")
    if os.path.exists(path):
        raise UserError(f"{setting}={path}: is neither a file nor a folder")
    raise UserError(f"{setting}={path}: no such file")


def check_folder(setting: str, folder: Path, *, write: bool = True) -> None:
    """Check that `folder`, which `setting` names, is a folder or can be made.

    Raises:
        UserError: it is a file or below one or, where it is to be written, may not be.
    """
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"{setting}={folder}: cannot be written ({folder} is no folder)")
    check_name(setting, folder)
    above = Path(os.path.abspath(folder))
    while not os.path.lexists(above):
        above = above.parent
    if not os.path.isdir(above):
        raise UserError(f"{setting}={folder}: cannot be written ({above} is no folder)")
    if write and not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{setting}={folder}: cannot be written (no permission in {above})")


def cache_dir() -> Path:
    """Return the cache folder, $ABLATE_CACHE or ~/.cache/ablate; all in it can be made again.

    Raises:
        UserError: it cannot be made.
    """
    chosen = os.environ.get("ABLATE_CACHE")
    folder = Path(chosen) if chosen else Path.home() / ".cache" / "ablate"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"ABLATE_CACHE={brief(folder)}: the cache cannot be written ({error.strerror})"
        ) from None
    return folder
