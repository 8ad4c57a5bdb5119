"""Starts that decompose the base's weights, kept between cells: on a large model they take minutes.

What is kept are the adapter's own tensors, in the cache folder, by the content of the base and all
that the start depends on; a cell that finds them has the bits that it would have computed.
"""

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ablate.adapters import registry
from ablate.adapters.init.spec import init_of
from ablate.adapters.method import Shapes, holds
from ablate.config.schema import Cell
from ablate.paths import cache_dir

LEAST = 2**20  # numbers of the largest adapted matrix: smaller ones are decomposed in no time
VERSION = 1  # increased by a change of what a start computes


def start_file(
    cell: Cell, shapes: Shapes, *, content_hash: str, device: torch.device
) -> Path | None:
    """Return where the cell's start is kept, or None where it is not.

    Args:
        cell: the cell.
        shapes: of the base's linear layers.
        content_hash: of the base; "" if it is not known.
        device: where the start is computed, which decides its last bits.
    """
    row, options = init_of(cell)
    if not (content_hash and holds(row.decomposes, options)):
        return None
    if max(d * k for d, k in registry.adapted(cell, shapes).values()) < LEAST:
        return None
    versions = [VERSION, *(metadata.version(name) for name in ("peft", "torch"))]
    parts = [content_hash, cell.base_precision, device.type, cell.seed, cell.sham, versions]
    text = json.dumps([*parts, registry.capacity(cell, shapes), options], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    return cache_dir() / "starts" / f"{key}.safetensors"


def store(module: nn.Module, file: Path) -> None:
    """Write the adapter's own tensors to `file`; another process may do the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}")
    copies = {n: t.detach().cpu().clone().contiguous() for n, t in _own(module).items()}
    save_file(copies, draft)
    draft.replace(file)


@torch.no_grad()
def restore(module: nn.Module, file: Path) -> None:
    """Set the adapter's own tensors to those in `file`."""
    stored = load_file(file)
    for name, tensor in _own(module).items():
        tensor.copy_(stored[name])


def _own(module: nn.Module) -> dict[str, Tensor]:
    own: frozenset[str] = module.adapter_own  # type: ignore[assignment]
    everything = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: everything[name] for name in sorted(own)}
