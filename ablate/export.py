"""Exports the weights of a recorded cell: a folder that other programs load, with a model card."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from ablate.adapters import compatibility, registry, weights
from ablate.adapters.stored import weights_bytes
from ablate.config.build import build
from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.experiment.identity import Identity, identify
from ablate.models.load import load_tokenizer
from ablate.results.card import card, read_items
from ablate.results.named import find, record_in
from ablate.run import WEIGHTS, base_name, restored


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded cell: its folder, record, configuration and identity."""

    folder: Path
    record: dict[str, Any]
    cell: Cell
    identity: Identity


def export(cell: str, to: Path, *, merge: bool = False, retrain: bool = False) -> Path:
    """Return `to`, newly written: the weights of a recorded cell, its tokenizer and a card.

    Args:
        cell: the folder of a record, OUT/cells/KEY; a unique beginning of the key is enough.
        to: the folder to write; it must not exist, or be empty.
        merge: write a whole model, with the adapter merged into the base's weights.
        retrain: train the cell again where its weights were not kept.

    Raises:
        UserError: there is no such cell, its weights were not kept or cannot be merged, or its
            base or data have changed.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to {to}: is there already; choose a folder that is new or empty")
    found = _recorded(find(cell), merge=merge, retrain=retrain)
    model, _ = restored(found.cell, found.folder)
    whole = merge or not isinstance(model, PeftModel)
    to.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}-"))
    try:
        _write(model, draft, found, name=to.name, merge=merge, whole=whole)
        draft.chmod(0o755)  # mkdtemp's are private
        draft.replace(to)  # an empty folder is replaced
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return to


def _recorded(folder: Path, *, merge: bool, retrain: bool) -> Recorded:
    """Return the record in `folder`, checked for what is asked of it before anything is loaded."""
    record = record_in(folder)
    cell = build(record["config"])
    if cell.is_base:
        raise UserError(f"{folder}: is the untouched base model, from which nothing was trained")
    if merge and not compatibility.merges(cell):
        reason = (
            f"adapter={cell.adapter.name}"
            if not registry.method(cell.adapter).merges
            else f"base_precision={cell.base_precision}"
        )
        raise UserError(f"--merge: {reason} cannot be merged exactly; export the adapter alone")
    identity = identify(cell)
    if not weights.kept(folder / WEIGHTS) and not retrain:
        size = weights_bytes(cell, identity.files) / 2**20
        raise UserError(
            f"{folder}: its weights were not kept ({size:,.1f} MB, and "
            f"execution.keep_weights_mb={cell.execution.keep_weights_mb:g}); --retrain trains the "
            "cell again"
        )
    if identity.train_key != record["train_key"]:
        raise UserError(
            f"{folder}: its base model, its data or the code that trains have changed since; the "
            f"same configuration is now run {identity.train_key}"
        )
    return Recorded(folder, record, cell, identity)


def _write(
    model: nn.Module, folder: Path, found: Recorded, *, name: str, merge: bool, whole: bool
) -> None:
    base = base_name(found.cell, found.identity)
    if merge and isinstance(model, PeftModel):
        model = model.merge_and_unload(safe_merge=True)
    weights.save(model, folder, base=base)
    load_tokenizer(found.identity.files.folder, found.cell.model.chat_template).save_pretrained(
        folder
    )
    text = card(found.record, read_items(found.folder), name=name, base=base, merged=whole)
    (folder / "README.md").write_text(text, encoding="utf-8")
