"""Short probes of runs: a few steps of training and a few items scored, timed on this machine.

Of each kind of run (base model, adapter) the largest is probed, carried out as every run is but
into a folder that is thrown away: once small and once larger. What the larger one takes longer is
the pace, what both take is what a run costs beside its steps and items. Each is carried out twice
and the second counts, for in the first libraries are loaded and benchmarks are built, which a
worker does once.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ablate.config.schema import Cell
from ablate.experiment.cost import work_of
from ablate.experiment.design import Named
from ablate.experiment.identity import identify
from ablate.experiment.pace import FLOPS_PER_SECOND, ITEMS, Done, Sample, Work, fitted, sample
from ablate.models.load import device_of
from ablate.results.store import Store
from ablate.run import run_cells

KINDS = 3  # of runs that are probed: those that take longest
STEPS = (1, 3)  # of training
FEWEST, BATCHES = 8, 2  # items of a benchmark: at least so many, and so many batches where quick
SCORING = 20.0  # seconds for which a model that is slow on a CPU is scored, by its size

Carry = Callable[[Sequence[Cell], str, Store], None]


def probes(
    names: Iterable[Named],
    *,
    carry: Carry = run_cells,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[Done], list[tuple[Cell, str]]]:
    """Return probes of the largest kinds among some runs, and cells that could not be, and why.

    Args:
        names: the runs, whose models and data are on this machine.
        carry: carries out a run.
        clock: in seconds.
    """
    found: list[Done] = []
    failed: list[tuple[Cell, str]] = []
    for named in _largest(names):
        try:
            found.append(_probe(named, carry, clock))
        except Exception as error:  # other kinds may be probed all the same
            text = " ".join(str(error).split())
            failed.append((named.cell, text or type(error).__name__))
    return found, failed


def _largest(names: Iterable[Named]) -> list[Named]:
    """Return the largest run of each kind, of the kinds that take longest."""
    kinds: dict[tuple[str, int], tuple[float, Named]] = {}
    for named in names:
        work = work_of(named)
        kind, size = (work.adapter, work.parameters), work.flops
        if named.cell.is_base and work.eval_flops == 0:
            continue
        if kind not in kinds or size > kinds[kind][0]:
            kinds[kind] = size, named
    ranked = sorted(kinds.values(), key=lambda one: -one[0])
    return [named for _, named in ranked[:KINDS]]


def _probe(named: Named, carry: Carry, clock: Callable[[], float]) -> Done:
    cell, work = named.cell, work_of(named)
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (steps, items) in enumerate(zip(STEPS, _items(cell, work), strict=True)):
            short = _shortened(cell, steps, items)
            for turn in range(2):
                store = Store(Path(folder) / f"{number}-{turn}")
                store.prepare()
                key, started = identify(short).train_key, clock()
                carry([short], key, store)
                seconds = clock() - started
            record = store.record(key)
            assert record is not None
            samples.append(sample(record, seconds))
    return fitted(work, *samples)


def _shortened(cell: Cell, steps: int, items: int) -> Cell:
    train = replace(cell.train, max_steps=min(steps, cell.train.max_steps or steps))
    few = replace(cell.evaluate, limit=items, items=None, chosen=None)
    return replace(cell, train=train, evaluate=few)


def _items(cell: Cell, work: Work) -> tuple[int, int]:
    """Return how many items of each benchmark the small and the larger probe score."""
    limit = cell.evaluate.limit or ITEMS
    most = min(limit, BATCHES * cell.execution.eval_batch_size)
    if device_of(cell.execution.device).type == "cpu" and work.eval_flops:
        quick = int(SCORING * FLOPS_PER_SECOND / work.eval_flops * limit)
        most = min(most, max(FEWEST, quick))
    return max(1, most // 2), max(1, most)
