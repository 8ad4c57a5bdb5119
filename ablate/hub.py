"""The hub of models and data sets: whether it answers, asked once and briefly.

`huggingface_hub` and `datasets` try an unreachable hub again for minutes. So it is asked here
first; where it does not answer, this process and those that it starts are put offline: what is on
the machine is found at once, and what is not is an error of one line.
"""

import functools
import os
import queue
import ssl
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

from ablate.errors import UserError

ENDPOINT = "https://huggingface.co"
DEADLINE = 2.0  # seconds in which it must answer, the look-up of its name included
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
LOADED = ("huggingface_hub.constants", "datasets.config")  # modules that read the first on import


@functools.cache
def unreachable() -> str:
    """Return why the hub cannot be reached, "" where it answers; asked once per process."""
    if os.environ.get(OFFLINE[0], "").upper() in ("1", "ON", "YES", "TRUE"):
        return f"{OFFLINE[0]} is set"
    endpoint = os.environ.get("HF_ENDPOINT") or ENDPOINT
    fault = _asked(endpoint)
    if fault:
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
        for name in LOADED:
            if name in sys.modules:
                sys.modules[name].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    return f"{endpoint}: {fault}" if fault else ""


def absent(what: str) -> UserError:
    """Return the error of what is not on this machine while the hub cannot be reached."""
    fault = unreachable()
    return UserError(f"{what}: is not on this machine, and the hub cannot be reached ({fault})")


def check_data(setting: str, name: str) -> None:
    """Check that the data set `name` may be had; imports neither `datasets` nor the hub's library.

    Raises:
        UserError: it is in no cache here and the hub cannot be reached.
    """
    if unreachable() and not _cached(name):
        raise absent(setting)


def _cached(name: str) -> bool:
    """Return whether one of the two caches has a folder for a data set, whatever is in it."""
    above = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(os.environ.get("HF_HOME") or Path(above, "huggingface")).expanduser()
    files = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    tables = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    owner = name.partition("/")[0]  # `datasets` respells the rest of a name
    own = f"datasets--{name.replace('/', '--')}"
    return (files / own).is_dir() or any(tables.glob(f"{owner}*"))


def _asked(endpoint: str) -> str:
    """Return what went wrong, by the deadline; a thread, for the look-up of a name has no limit."""
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_answer(endpoint)), daemon=True).start()
    try:
        return answers.get(timeout=DEADLINE)
    except queue.Empty:
        return f"no answer within {DEADLINE:g} s"


def _answer(endpoint: str) -> str:
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=DEADLINE):
            return ""
    except urllib.error.HTTPError as error:
        return "" if error.code < 500 else f"HTTP status {error.code}"
    except Exception as error:  # of many kinds: the name, the connection, the protocol, the URL
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):  # it is there: the library may know it
            return ""
        return str(reason).strip() or type(reason).__name__
