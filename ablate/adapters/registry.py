"""The adapter methods, their options and their size at a LoRA rank. No torch.

A method is one row (`method.Method`) in the module of its family; a level is one YAML file in
conf/adapter that names a row and sets its options.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from ablate.adapters import plain, plugged
from ablate.adapters.lora import spec as lora
from ablate.adapters.method import Budget, Method, Shape, Shapes, lora_count
from ablate.adapters.mora import spec as mora
from ablate.adapters.options import filled
from ablate.adapters.peft import bases, light, orthogonal, products, prompts, shared
from ablate.adapters.three_factor import spec as three_factor
from ablate.config.schema import Adapter, Cell, Placement
from ablate.errors import UserError, unknown

_LOW_RANK = (lora, mora, three_factor, products, shared)
_OTHER = (bases, orthogonal, light, prompts)
KINDS: Mapping[str, Method] = {
    name: row for family in (plain, *_LOW_RANK, *_OTHER) for name, row in family.ROWS.items()
}
MATCHED_WITHIN = 0.1  # relative distance to LoRA's count up to which a budget counts as matched

# The parts of a decoder layer, by substrings of the module names that architectures use.
PARTS = {"attention": ("attn", "attention"), "mlp": ("mlp", "feed_forward", "ffn")}
# Matrices that hold several projections in one, by the projections: Pythia's and Falcon's
# query_key_value, Phi-3's qkv_proj and gate_up_proj, MPT's Wqkv, GPT-2's c_attn.
_QKV = ("query_key_value", "qkv_proj", "Wqkv", "c_attn")
FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), _QKV),
    **dict.fromkeys(("gate_proj", "up_proj"), ("gate_up_proj",)),
}
_LAYER = re.compile(r"\.(\d+)\.")


class Sizes(Protocol):
    """The sizes of a base model from which trained parameters are counted."""

    @property
    def linear_shapes(self) -> Mapping[str, Shape]:
        """Shape (d, k) of every linear layer of the decoder."""

    @property
    def parameters(self) -> int:
        """Number of all parameters; a tied matrix counts once."""

    @property
    def embedding_parameters(self) -> int:
        """Number of parameters of the token embedding, and of the head if it is not tied."""

    @property
    def norm_parameters(self) -> int:
        """Number of weights and biases of the normalisation layers."""


def method(adapter: Adapter) -> Method:
    """Return the adapter's row: this project's, else that of another installed package.

    Raises:
        UserError: there is no such kind.
    """
    if adapter.kind in KINDS:
        return KINDS[adapter.kind]
    if adapter.kind in (others := plugged.points()):
        return plugged.row(adapter.kind)
    raise unknown("adapter.kind", adapter.kind, {*KINDS, *others})


def check(cell: Cell, shapes: Shapes) -> None:
    """Refuse an adapter that cannot be built on a model whose linear layers have these `shapes`.

    Raises:
        UserError: an unknown kind, option or module, an option out of range, or a rank above the
            smaller side of an adapted matrix.
    """
    options = settings(cell.adapter)
    row, chosen = method(cell.adapter), adapted(cell, shapes)
    if not (row.adapts and row.placed):
        _check_everywhere(cell)
    if not row.adapts:
        return
    name = min(chosen, key=lambda module: min(chosen[module]))
    d, k = chosen[name]
    if cell.rank > min(d, k):
        raise UserError(
            f"rank={cell.rank}: must be at most {min(d, k)}, the smaller side of {name} ({d} x {k})"
        )
    row.arguments_at(cell.rank, chosen, options)  # raises where a method needs more of the shapes


def _check_everywhere(cell: Cell) -> None:
    placement = cell.placement
    if (placement.modules, placement.layers) != ("all", "all") and not cell.is_base:
        raise UserError(
            f"placement={placement.name}: adapter={cell.adapter.name} adapts no matrices, so it "
            "has no placement; must be all"
        )


def settings(adapter: Adapter) -> dict[str, Any]:
    """Return every option of the adapter's method: as given, else its default.

    Raises:
        UserError: an unknown kind or option, or a value that is not allowed.
    """
    known = method(adapter).options
    return filled(adapter.options, known, factor="adapter", kind=adapter.kind)


def targets(placement: Placement, shapes: Shapes) -> dict[str, Shape]:
    """Return the adapted modules among `shapes`: by part or dotted ending, and by layer.

    Raises:
        UserError: a module, a part or a layer that the model does not have.
    """
    chosen = _by_layer(placement, _by_module(placement, shapes), among=shapes)
    if not chosen:
        raise UserError(f"placement={placement.name}: selects no matrix of this model")
    return chosen


def adapted(cell: Cell, shapes: Shapes) -> dict[str, Shape]:
    """Return the matrices that the cell's adapter changes: those of its placement that it supports.

    Raises:
        UserError: there are none.
    """
    chosen, only = targets(cell.placement, shapes), method(cell.adapter).only
    if not only:
        return chosen
    found = {name: shape for name, shape in chosen.items() if name.endswith(only)}
    if not found:
        raise UserError(
            f"placement={cell.placement.name}: has none of the matrices that "
            f"adapter={cell.adapter.name} changes: {', '.join(only)}"
        )
    return found


def fused(shapes: Shapes) -> list[str]:
    """Return the names, without their place, of matrices that hold several projections in one."""
    leaves = dict.fromkeys(name.rpartition(".")[2] for name in shapes)
    return [leaf for leaf in leaves if any(leaf in joint for joint in FUSED.values())]


def _by_module(placement: Placement, shapes: Shapes) -> dict[str, Shape]:
    wanted = placement.modules
    if wanted == "all":
        return dict(shapes)
    if isinstance(wanted, str):
        words = PARTS[wanted]
        return {n: s for n, s in shapes.items() if any(word in n for word in words)}
    if not wanted:
        raise UserError("placement.modules=[]: must name a module, or all")
    for target in wanted:
        if not any(_ends(name, target) for name in shapes):
            leaves = {name.rpartition(".")[2] for name in shapes}
            joint = [leaf for leaf in fused(shapes) if leaf in FUSED.get(target, ())]
            if joint:
                raise UserError(
                    f"placement.modules={target}: this model has it in one matrix with others, "
                    f"{joint[0]}, which an adapter changes as a whole; name that"
                )
            raise unknown("placement.modules", target, {"all", *PARTS, *leaves})
    return {n: s for n, s in shapes.items() if any(_ends(n, target) for target in wanted)}


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _by_layer(placement: Placement, shapes: dict[str, Shape], *, among: Shapes) -> dict[str, Shape]:
    if placement.layers == "all":
        return shapes
    layer = {name: int(found[1]) for name in among if (found := _LAYER.search(name))}
    count = max(layer.values(), default=-1) + 1
    for number in placement.layers:
        if not -count <= number < count:
            raise UserError(
                f"placement.layers: {number} is not one of this model's {count} layers (0 to "
                f"{count - 1}, or -1 for the last)"
            )
    wanted = {number % count for number in placement.layers}
    return {name: shape for name, shape in shapes.items() if layer.get(name) in wanted}


def capacity(cell: Cell, shapes: Shapes) -> dict[str, Any]:
    """Return the adapter as part of a run's identity: equal results mean equal adapters.

    It is the same for all spellings of one adapter: any rank under full fine-tuning, ranks that
    round to one capacity, alphas that give one scale, placements that select the same modules.
    """
    row = method(cell.adapter)
    chosen, options = adapted(cell, shapes), settings(cell.adapter)
    found = {"kind": cell.adapter.kind, **row.capacity_at(cell.rank, chosen, options)}
    if row.adapts and row.placed:
        found["targets"] = "all" if len(chosen) == len(shapes) else sorted(chosen)
    if row.adapts:
        found["init"] = [cell.init.kind, dict(cell.init.options)]
    if cell.adapter.kind not in KINDS:
        found["code"] = plugged.code(cell.adapter.kind)
    return found


def virtual_tokens(cell: Cell, shapes: Shapes) -> int:
    """Return the number of virtual tokens that the adapter puts before every example."""
    row = method(cell.adapter)
    if row.packs:
        return 0
    arguments = row.arguments_at(cell.rank, adapted(cell, shapes), settings(cell.adapter))
    return int(arguments.get("num_virtual_tokens", 0))


def budget(cell: Cell, shapes: Shapes, *, norms: int = 0) -> Budget | None:
    """Return the adapter's number of parameters and LoRA's; None if the method adds none.

    LoRA's is that of the same rank on the same placement. `norms` is `Sizes.norm_parameters`.
    """
    row = method(cell.adapter)
    if not row.adapts:
        return None
    asked = lora_count(cell.rank, targets(cell.placement, shapes))
    got = _added(cell, shapes, norms)
    near = abs(got / asked - 1) <= MATCHED_WITHIN
    return Budget(asked=asked, got=got, status="matched" if row.matched and near else "unmatched")


def _added(cell: Cell, shapes: Shapes, norms: int) -> int:
    """Return how many parameters the adapter adds and trains."""
    row, options = method(cell.adapter), settings(cell.adapter)
    chosen = adapted(cell, shapes)
    own = row.parameters_at(cell.rank, chosen, options, optimizer=cell.optimizer.kind)
    return own + (norms if row.trains_norms else 0)


def trains_of_base(cell: Cell) -> bool:
    """Return whether weights of the base train, its embeddings included."""
    trained = method(cell.adapter).trains_base or cell.embeddings == "trained"
    return trained and not cell.is_base


def trains_half(cell: Cell) -> bool:
    """Return whether weights of the base train that have 16 bits; an adapter's own have 32."""
    return cell.base_precision == "bf16" and trains_of_base(cell)


def automatic_precision(cell: Cell) -> Literal["fp32", "bf16"]:
    """Return what `base_precision=auto` is: bf16 for a frozen base that is computed with in bf16.

    It depends on the cell alone and on no machine, since it is part of the run's identity.
    """
    able = "bf16" in method(cell.adapter).precisions and not trains_of_base(cell)
    return "bf16" if able and cell.train.precision == "bf16" else "fp32"


def trainable_parameters(cell: Cell, sizes: Sizes) -> int:
    """Return the number of parameters that train in a model of these `sizes`, in closed form."""
    if cell.is_base:
        return 0
    of_base = trained_of_base(cell, sizes)
    return of_base + _added(cell, sizes.linear_shapes, sizes.norm_parameters)


def trained_of_base(cell: Cell, sizes: Sizes) -> int:
    """Return how many of the base's own parameters train."""
    if cell.is_base:
        return 0
    trains_body, ends = method(cell.adapter).trains_base, sizes.embedding_parameters
    body = sizes.parameters - ends if trains_body else 0
    return body + (ends if cell.embeddings == "trained" else 0)
