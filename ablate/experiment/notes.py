"""What a user must know of a grid before it runs: what a level leaves out, what is not kept."""

from collections.abc import Iterable, Sequence

from ablate.adapters import registry
from ablate.adapters.init.spec import init_of
from ablate.adapters.stored import weights_bytes
from ablate.config.schema import Cell
from ablate.experiment.design import Named

MB = 2**20


def notes(runs: Iterable[Named]) -> list[str]:
    """Return a line for each thing that the runs do not do, or do not keep, as one might expect."""
    runs = [run for run in runs if not run.cell.is_base]
    said = [line for run in runs for line in _of_levels(run.cell)]
    return [*dict.fromkeys(said), *_not_kept(runs)]


def _of_levels(cell: Cell) -> list[str]:
    found = []
    if registry.method(cell.adapter).trains_base and cell.embeddings == "frozen":
        found.append(
            f"adapter={cell.adapter.name}: embedding and head stay frozen, as beside every "
            "adapter; embeddings=trained trains them"
        )
    if cell.masking.first_header_only and cell.loss.scope != "example":
        found.append(
            f"masking={cell.masking.name}: under loss.scope={cell.loss.scope} it is the mask of "
            "the released code alone; that code also averages over each example: loss.scope=example"
        )
    if control := init_of(cell)[0].control:
        found.append(f"init={cell.init.name}: a control: {control}")
    return found


def _not_kept(runs: Sequence[Named]) -> list[str]:
    """Return a line on weights above `execution.keep_weights_mb`, by adapter and base model."""
    sizes: dict[str, list[float]] = {}
    limits: dict[str, float] = {}
    for run in runs:
        size = weights_bytes(run.cell, run.identity.files) / MB
        if size > run.cell.execution.keep_weights_mb:
            name = f"{run.cell.adapter.name} on {run.cell.model.name}"
            sizes.setdefault(name, []).append(size)
            limits[name] = run.cell.execution.keep_weights_mb
    if not sizes:
        return []
    count, total = sum(map(len, sizes.values())), sum(map(sum, sizes.values()))
    each = ", ".join(f"{name} {max(own):,.1f} MB" for name, own in sizes.items())
    largest = max(map(max, sizes.values()))
    return [
        f"NOT KEPT: the trained weights of {count} of {len(runs)} runs ({each} a run, above "
        f"execution.keep_weights_mb={min(limits.values()):g}); scores asked for later, and ablate "
        f"export, would train them again; execution.keep_weights_mb={largest + 0.1:.1f} keeps "
        f"them, {total:,.0f} MB in all"
    ]
