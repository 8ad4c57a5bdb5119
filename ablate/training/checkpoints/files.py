"""Checkpoints of one run on disk: each whole or not at all, and checked by hash when read.

    FOLDER/step-00000120/    manifest.json     size and SHA-256 of the other files
                             state.json        numbers and texts
                             0.safetensors ... tensors, about 1 GiB a file

A checkpoint is written into a draft, flushed and renamed. Of several the newest that is sound is
read. Two processes may not write one run's checkpoints at a time (`results.store` sees to that).
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ablate.results.files import DRAFT, draft_of, sha256, sync
from ablate.training.checkpoints.tree import Tensors, pack, unpack

STEP, MANIFEST, STATE = "step-", "manifest.json", "state.json"
FILE_BYTES = 2**30
FORMAT = 1


class Damaged(Exception):
    """A checkpoint that is not as it was written."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk that was found to be sound."""

    folder: Path
    state: Any  # of `tree.pack`
    names: Mapping[str, str]  # of tensors: the file of each

    def read(self, device: torch.device) -> Any:
        """Return the tree that was written; what was on a GPU goes to `device`."""
        with ExitStack() as stack:
            files = {
                file: stack.enter_context(safe_open(self.folder / file, "pt"))
                for file in set(self.names.values())
            }

            def tensor(name: str) -> Tensor:
                found: Tensor = files[self.names[name]].get_tensor(name)
                return found

            return unpack(self.state, tensor, device)


def write(tree: Any, folder: Path, *, step: int) -> int:
    """Write a checkpoint of `tree` into `folder`, whole or not at all; return its size in bytes.

    Raises:
        OSError: it cannot be written; nothing is left of it.
        TypeError: the tree has something in it that cannot be stored.
    """
    tensors: Tensors = {}
    state = pack(tree, tensors)
    place = folder / f"{STEP}{step:08d}"
    draft = draft_of(place)
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        names = _write_tensors(tensors, draft)
        (draft / STATE).write_text(json.dumps({"state": state, "names": names}))
        files = {file.name: _seal(file) for file in sorted(draft.iterdir())}
        (draft / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}))
        for path in (draft / MANIFEST, draft):
            sync(path)
        shutil.rmtree(place, ignore_errors=True)  # one that is damaged
        draft.rename(place)
        sync(folder)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return sum(size for size, _ in files.values())


def found(folder: Path) -> list[Path]:
    """Return the folders of checkpoints in `folder`, the newest first."""
    return sorted(folder.glob(f"{STEP}*"), reverse=True)


def clear(folder: Path, *, keep: int) -> None:
    """Remove all checkpoints but the newest `keep`, and drafts of writers that were killed."""
    for path in (*found(folder)[keep:], *folder.glob(f"{DRAFT}*")):
        shutil.rmtree(path, ignore_errors=True)


def checked(folder: Path) -> Checkpoint:
    """Return the checkpoint in `folder`, once every file has the size and hash that it had.

    Raises:
        Damaged: one has not, or is missing.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise Damaged(f"has the format {manifest['format']}, not {FORMAT}")
        for name, (size, digest) in manifest["files"].items():
            if (folder / name).stat().st_size != size or sha256(folder / name) != digest:
                raise Damaged(f"{name} is not as it was written")
        content = json.loads((folder / STATE).read_text())
        return Checkpoint(folder, content["state"], content["names"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"cannot be read ({type(error).__name__}: {error})") from None


def _write_tensors(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, str]:
    """Write the tensors into files of bounded size; return the file of each."""
    names: dict[str, str] = {}
    for number, part in enumerate(_parts(tensors)):
        file = f"{number}.safetensors"
        save_file(_alone(part), folder / file)
        names |= dict.fromkeys(part, file)
    return names


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > FILE_BYTES:
            yield part
            part, size = {}, 0
        part[name], size = tensor, size + tensor.nbytes
    if part:
        yield part


def _alone(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU, each in one piece and without a share in another's memory."""
    made, places = {}, set()
    for name, tensor in part.items():
        dense = tensor.to("cpu").contiguous()
        place = dense.untyped_storage().data_ptr()
        shares = place in places or dense.untyped_storage().nbytes() != dense.nbytes
        places.add(place)
        made[name] = dense.clone() if shares else dense
    return made


def _seal(file: Path) -> tuple[int, str]:
    """Return size and hash of a file that is on the disk."""
    sync(file)
    return file.stat().st_size, sha256(file)
