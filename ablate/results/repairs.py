"""The repair of a folder of results: damaged records give way, kept results get their places."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from ablate.errors import UserError
from ablate.results import seal
from ablate.results.files import set_aside
from ablate.results.store import Store


def migrate(store: Store, key: str) -> bool:
    """Write the record of `key` in today's schema if it is an older one; say whether it was."""
    found = seal.raw(store.folder(key)) or {}
    if "seal" in found or store.record(key) is None:
        return False
    with store.claim(key) as mine:
        if mine and (record := store.record(key)):
            store.amend(key, record)
    return mine


def kept_results(store: Store) -> list[Path]:
    """Return what is under `kept/`."""
    return sorted(store.kept.glob("*"))


def take_kept(store: Store) -> list[str]:
    """Give results under `kept/` their places; return a line for each."""
    told = []
    for state in kept_results(store):
        key = str((seal.raw(state) or {}).get("train_key", ""))
        if not key or seal.read(state, key)[0] is None or store.record(key) is not None:
            continue
        with store.claim(key) as mine, contextlib.suppress(OSError):
            if mine:
                if os.path.lexists(store.folder(key)):
                    set_aside(store.folder(key), store.damaged)
                os.rename(state, store.folder(key))
                told.append(f"kept/{state.name} was given its place in cells/")
    return told


def set_damaged_aside(store: Store, keys: Iterable[str], *, every_byte: bool = False) -> list[str]:
    """Move damaged records of `keys` to `damaged/`; return a line for each.

    Those that another worker holds are its own to replace.

    Raises:
        UserError: one may not be read or moved by this user.
    """
    told = []
    for key in keys:
        found, fault = seal.read(store.folder(key), key, every_byte=every_byte)
        if found is not None:
            with contextlib.suppress(OSError):
                seal.retime(found, store.folder(key))
        if seal.DENIED in fault:
            raise UserError(
                f"{store.folder(key)}: {fault}; its owner may allow it by chmod -R a+rX"
            )
        if not fault:
            continue
        with store.claim(key) as mine:
            if mine and store.fault(key, every_byte=every_byte):
                told.append(f"{_aside(store, key)} ({fault})")
    return told


def _aside(store: Store, key: str) -> str:
    try:
        place = set_aside(store.folder(key), store.damaged)
    except OSError as error:
        raise UserError(
            f"{store.folder(key)}: is damaged and cannot be moved to {store.damaged} "
            f"({error.strerror})"
        ) from None
    return f"damaged: cells/{key} was moved to damaged/{place.name}"
