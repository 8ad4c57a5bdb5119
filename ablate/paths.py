"""Where the configuration tree and the cache are, in a checkout and in an installed wheel."""

import os
from pathlib import Path

from ablate.errors import UserError


def conf_dir() -> Path:
    """Return the folder of the configuration tree: inside the package, or beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def in_checkout() -> bool:
    """Return whether the configuration tree is a checkout's, not inside an installed package."""
    return conf_dir().parent != Path(__file__).resolve().parent


def check_folder(setting: str, folder: Path, *, write: bool = True) -> None:
    """Check that `folder`, which `setting` names, is a folder or can be made.

    Raises:
        UserError: it is a file or below one or, where it is to be written, may not be.
    """
    above = Path(os.path.abspath(folder))
    while not os.path.lexists(above):
        above = above.parent
    if not os.path.isdir(above):
        raise UserError(f"{setting}={folder}: cannot be written ({above} is no folder)")
    if write and not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{setting}={folder}: cannot be written (no permission in {above})")


def cache_dir() -> Path:
    """Return the cache folder, $ABLATE_CACHE or ~/.cache/ablate; all in it can be made again."""
    chosen = os.environ.get("ABLATE_CACHE")
    folder = Path(chosen) if chosen else Path.home() / ".cache" / "ablate"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
