"""Where the configuration tree and the cache are, in a checkout and in an installed wheel."""

import os
from pathlib import Path


def conf_dir() -> Path:
    """Return the folder of the configuration tree: inside the package, or beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def cache_dir() -> Path:
    """Return the cache folder, $ABLATE_CACHE or ~/.cache/ablate; all in it can be made again."""
    chosen = os.environ.get("ABLATE_CACHE")
    folder = Path(chosen) if chosen else Path.home() / ".cache" / "ablate"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
