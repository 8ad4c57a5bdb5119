"""How much the runs of a design train on: rows, tokens and optimizer steps. No torch."""

from typing import Any

from ablate.config.schema import Cell
from ablate.data.tokenise import Summary
from ablate.experiment.design import Design
from ablate.experiment.known import about_steps, counts_steps
from ablate.experiment.labels import Names


def tokens(cell: Cell, data: Summary) -> float:
    """Return the tokens that a cell trains on; steps count instead of epochs where given."""
    train = cell.train
    if cell.is_base:
        return 0.0
    if train.max_steps is None:
        return data.rows * train.epochs * data.mean_length
    each = train.batch_size * (data.mean_length if train.batch_unit == "examples" else 1)
    return train.max_steps * each


def amounts(design: Design) -> list[dict[str, Any]]:
    """Return an entry for every data set, base model and schedule of the trained cells.

    Each holds dataset, model, rows and tokens of one epoch, longest (tokens of a row), steps of a
    run (about_steps: whether they are exact), tokens_trained, and batch_size in batch_unit.
    """
    trained = [named for named in design.cells if not named.cell.is_base]
    names = Names(part for n in trained for part in (n.cell.dataset, n.cell.model))
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for named in trained:
        cell, data = named.cell, named.identity.data
        train = cell.train
        schedule = (train.epochs, train.max_steps, train.batch_size, train.batch_unit)
        mark = (data.content_hash, id(cell.dataset), id(cell.model), *schedule)
        if mark not in found:
            found[mark] = {
                "dataset": names[cell.dataset],
                "model": names[cell.model],
                "rows": data.rows,
                "tokens": data.tokens,
                "longest": data.max_length,
                "steps": about_steps(cell, data),
                "steps_exact": counts_steps(cell),
                "tokens_trained": round(tokens(cell, data)),
                "batch_size": train.batch_size,
                "batch_unit": train.batch_unit,
                "epochs": None if train.max_steps is not None else train.epochs,
            }
    return list(found.values())
