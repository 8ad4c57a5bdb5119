"""Which regularisers a cell truly carries out, and the settings that some of them are. No torch.

Weight decay, label smoothing and adapter dropout are settings of the optimizer, the loss and the
adapter under one more name; `left` says what remains of a regulariser without them. The others act
during training and are in `regularise`.
"""

import functools
from dataclasses import replace
from typing import Any

from ablate.adapters import registry
from ablate.config.schema import Cell, Regulariser
from ablate.errors import UserError

# Kinds whose change is a matrix added to the base's, known to PEFT as a function of what trains.
# Left out: rotations, vectors and prompts have none; for HiRA, KaSA and MiSS, and for LoRA with
# DoRA's magnitudes, PEFT's matrix is not the change; aLoRA's acts on a part of the tokens only.
WITH_DELTA = frozenset({
    "adalora", "c3a", "delora", "fourierft", "gralora", "lamda", "loha", "lokr", "loldu", "lora",
    "lora_mini", "lora_sb", "mica", "mora", "moslora", "nlora", "nora", "pmss", "psoft", "randlora",
    "relora", "remora", "shira", "tinylora", "unilora", "vblora", "velora", "vera", "waveft",
})  # fmt: skip
# Kinds with LoRA's two factors as modules, between which a mask has its place.
WITH_RANK = frozenset({"alora", "kasa", "lora", "mica", "relora", "velora"})
# Kinds that train vectors only, which weight decay leaves alone; PSOFT's rotations are another.
WITHOUT_MATRICES = frozenset({
    "fourierft", "layernorm", "loldu", "road", "shira", "tinylora", "unilora", "vera", "waveft",
})  # fmt: skip


@functools.lru_cache(maxsize=256)
def left(asked: Regulariser) -> Regulariser:
    """Return what acts during training: `asked` itself, if it names no other part's setting."""
    power = asked.minkowski_p if asked.minkowski else Regulariser().minkowski_p
    bare = replace(
        asked, weight_decay=None, label_smoothing=None, adapter_dropout=None, minkowski_p=power
    )
    return asked if bare == asked else bare


def options_with_dropout(cell: Cell, share: float) -> dict[str, Any]:
    """Return the options of the cell's adapter under a dropout of `share`.

    Raises:
        UserError: the adapter has no dropout.
    """
    if "dropout" not in registry.method(cell.adapter).options:
        raise _refusal(cell, "adapter_dropout", "has no dropout of its own", "null")
    return {**cell.adapter.options, "dropout": share}


def check(cell: Cell) -> None:
    """Refuse a regulariser that the cell's adapter would leave without effect.

    Raises:
        UserError: one line with the setting, the reason and what is allowed.
    """
    asked, kind = cell.regulariser, cell.adapter.kind
    if asked.rank_dropout and kind not in WITH_RANK:
        raise _refusal(cell, "rank_dropout", "has no factors A and B with a rank between them")
    if asked.minkowski and kind != "full":
        dora = kind == "lora" and cell.adapter.options.get("dora")
        if dora or kind not in WITH_DELTA:
            raise _refusal(cell, "minkowski", "adds no matrix whose size can be measured")
    if asked.weight_decay and trains_vectors(cell):
        raise _refusal(cell, "weight_decay", "trains vectors only, which do not decay", "0 or null")


def trains_vectors(cell: Cell) -> bool:
    """Return whether all that trains is stored as vectors, which have no weight decay."""
    kind = cell.adapter.kind
    rotates = kind == "psoft" and registry.settings(cell.adapter)["orthogonal"]
    return cell.embeddings == "frozen" and (kind in WITHOUT_MATRICES or bool(rotates))


def _refusal(cell: Cell, setting: str, reason: str, allowed: str = "0") -> UserError:
    return UserError(
        f"regulariser.{setting}={getattr(cell.regulariser, setting)}: "
        f"adapter={cell.adapter.name} {reason}; with it {setting} must be {allowed}"
    )
