"""One run, from its configuration to its record: the file to read first.

    data -> model -> adapter -> train -> evaluate -> record

Several cells may be names of one run (aliases, or the same run asked for other scores): it is
trained once and scored for all of them.
"""

import functools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ablate import recording
from ablate.adapters import build, hooks, optimizers, weights
from ablate.adapters.stored import weights_bytes
from ablate.beside import Trained
from ablate.config.schema import Cell
from ablate.data.tokenise import Tokenised
from ablate.evaluate import lanes
from ablate.evaluate.scores import TaskScore
from ablate.evaluate.scoring import Wanted, ready, score
from ablate.experiment.cell_data import tokenised
from ablate.experiment.identity import Identity, identify
from ablate.experiment.labels import label
from ablate.experiment.notes import rows_lost
from ablate.models.load import computing_in, device_of, load
from ablate.objective import objective_of
from ablate.results import heart
from ablate.results.log import LOG, logged, say
from ablate.results.record import RECORD
from ablate.results.store import Store
from ablate.streams import Streams
from ablate.training import stop
from ablate.training.checkpoints.keeper import Checkpoints, checkpoints
from ablate.training.history import Diverged, Entry, Result, check_same
from ablate.training.hooks import combine
from ablate.training.loop import train
from ablate.training.regularisation.hooks import regularised

WEIGHTS = "weights"  # folder of the trained weights, where they are small enough to be kept


def run_cells(
    cells: Sequence[Cell], key: str, store: Store, *, beside: Trained | None = None
) -> None:
    """Train the run that `cells` name, unless it is recorded, and score what is missing.

    Args:
        cells: names of one run.
        key: its key.
        store: where it is recorded.
        beside: what was trained of it already, beside others (`beside.train_beside`).

    What was trained is safe before it is scored: an attempt that ends while it scores is gone on
    with by the next.

    Raises:
        Diverged: the loss or its gradient is no longer finite.
        UserError: weights were not kept, and training again gave others.
    """
    torch.set_num_threads(cells[0].execution.threads)
    recorded = store.record(key)
    missing = _missing(cells, recorded)
    if recorded is not None and not missing:  # another sweep was faster
        return
    cell, identity = cells[0], identify(cells[0])
    if recorded is None:
        with store.writing(key) as draft, logged(draft / LOG):
            heart.at("the benchmarks")
            ready(missing)  # raises before training where a benchmark cannot be loaded
            keep = functools.partial(store.keep_trained, key, draft)
            kept = checkpoints(cell.execution, store.checkpoints(key))
            model, history = _safe(
                cell, identity, draft=draft, keep=keep, beside=beside, checkpoints=kept
            )
            record = json.loads((draft / RECORD).read_text())
            heart.at("scoring")
            record, scores = _scored(record, model, history, missing)
            heart.at("the record")
            recording.write(record, scores, draft)
            _drop_large(draft, cell, identity)
        return
    with store.amending(key) as draft, logged(draft / LOG):
        model, history = restored(cell, draft)
        _write_weights(model, draft, cell, identity)
        heart.at("scoring")
        record, scores = _scored(recorded, model, history, missing)
        recording.amend(record, scores, draft)
        _drop_large(draft, cell, identity)


def _safe(
    cell: Cell,
    identity: Identity,
    *,
    draft: Path,
    keep: Callable[[], None],
    beside: Trained | None,
    checkpoints: Checkpoints | None,
) -> tuple[nn.Module, list[Entry]]:
    """Return the trained model and its history, once `draft` has them and `keep` has kept it.

    Where `draft` has them from an earlier attempt nothing is trained again.
    """
    if (draft / RECORD).exists() and beside is None:
        say("trained by an earlier attempt, which ended while it was scored")
        return restored(cell, draft)
    heart.at("the data")
    if beside is not None:
        model, course = beside.model, beside.course
    else:
        data = tokenised(cell, "train")
        model, course = _trained(cell, identity, data, checkpoints=checkpoints)
    if isinstance(course, Diverged):
        raise course
    if not (draft / RECORD).exists():
        _keep(model, course, cell, identity, draft=draft, keep=keep)
    stop.check("stopped before what is trained was scored")
    return model, course.history


def keep_beside(cell: Cell, key: str, store: Store, trained: Trained) -> None:
    """Write what was trained of a run beside others, so that it is safe before any is scored."""
    model, course = trained.model, trained.course
    if isinstance(course, Diverged):
        return
    with store.draft(key) as draft, logged(draft / LOG):
        keep = functools.partial(store.keep_trained, key, draft)
        _keep(model, course, cell, identify(cell), draft=draft, keep=keep)


def _keep(
    model: nn.Module,
    course: Result,
    cell: Cell,
    identity: Identity,
    *,
    draft: Path,
    keep: Callable[[], None],
) -> None:
    """Write a run that is trained and not scored yet into `draft`, then `keep` that."""
    if course.lanes > 1:
        say(f"trained {len(course.history)} steps beside {course.lanes - 1} other cells")
    recording.write_trained(recording.unscored(cell, identity, model, course), course, draft)
    if _write_weights(model, draft, cell, identity):
        keep()


def _write_weights(model: nn.Module, folder: Path, cell: Cell, identity: Identity) -> bool:
    """Write the trained weights beside the record, where they are not; return whether they are.

    A full disk costs the safety of what was trained, not the run.
    """
    if cell.is_base or weights.kept(folder / WEIGHTS):
        return True
    draft = folder / f".{WEIGHTS}"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        weights.save(model, draft, base=base_name(cell, identity))
        draft.rename(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        say(f"NOT SAFE: what was trained could not be written before it is scored: {error}")
        shutil.rmtree(draft, ignore_errors=True)
        return False
    return True


def _drop_large(folder: Path, cell: Cell, identity: Identity) -> None:
    """Remove trained weights that are larger than the cell's limit for what is kept."""
    if weights_bytes(cell, identity.files) > cell.execution.keep_weights_mb * 2**20:
        shutil.rmtree(folder / WEIGHTS, ignore_errors=True)


def _scored(
    record: dict[str, Any], model: nn.Module, history: list[Entry], missing: Sequence[Wanted]
) -> tuple[dict[str, Any], list[TaskScore]]:
    """Return `record` with the units of `missing` scored, and the scores that are new."""
    started = time.perf_counter()
    scored = score(model, history, missing)
    # A measure that does not apply gives no score; what failed is in the record's `unscored`.
    keys = {one.unit.key for one in missing}
    seconds = time.perf_counter() - started + lanes.owed(model)
    record = recording.with_scores(record, scored, model, keys=keys, seconds=seconds)
    return record, scored.scores


def _missing(cells: Sequence[Cell], recorded: dict[str, Any] | None) -> list[Wanted]:
    """Return the units that are not scored yet, each once, with a cell that asks for it."""
    known = set(recorded["score_keys"]) if recorded else set()
    found: dict[str, Wanted] = {}
    for cell in cells:
        identity = identify(cell)
        for unit in identity.units:
            if unit.key not in known:
                found.setdefault(unit.key, Wanted(cell, unit, identity.files))
    return list(found.values())


def _trained(
    cell: Cell, identity: Identity, data: Tokenised, *, checkpoints: Checkpoints | None = None
) -> tuple[nn.Module, Result]:
    """Return the cell's trained model and the course of training; the base is not trained."""
    streams = Streams(cell.seed, cell.sham)
    heart.at("the model")
    base = load(identity.files, cell.base_precision, device=device_of(cell.execution.device))
    heart.at("the adapter")
    known = identity.files.content_hash
    model = build.apply(base, cell, streams=streams, data=data, content_hash=known)
    if cell.is_base:
        return model, Result()
    say(f"training on {len(data)} rows, {len(data.ids)} tokens")
    if lost := rows_lost(cell, data.summary, positions=identity.files.max_positions):
        say(f"dataset={label(cell.dataset)}: {lost}")
    computing = computing_in(model, cell.train.precision)
    stopping = stop.stopping_on_signals()
    with computing, regularised(model, cell, streams=streams) as held, stopping:
        course = train(
            model,
            data,
            cell.train,
            objective=objective_of(cell),
            streams=streams,
            execution=cell.execution,
            hooks=combine(hooks.hooks(cell, streams=streams), held),
            tick=lambda step, of: heart.at(f"step {step} of {of}"),
            make_optimizer=optimizers.maker(
                cell.optimizer,
                seed=streams.seed("rounding"),
                offload=cell.execution.offload_optimizer,
            ),
            checkpoints=checkpoints,
        )
    say(f"trained {len(course.history)} steps in {course.train_seconds:.1f} s")
    return model, course


def restored(cell: Cell, folder: Path) -> tuple[nn.Module, list[Entry]]:
    """Return a recorded run's model and history; it is trained again where no weights were kept.

    Raises:
        UserError: it was trained again and took another course, so it is another model.
    """
    identity = identify(cell)
    if cell.is_base or not weights.kept(folder / WEIGHTS):
        model, course = _trained(cell, identity, tokenised(cell, "train"))
        check_same(course.history, recording.read_history(folder), cell.train.precision)
        return model, course.history
    base = load(identity.files, cell.base_precision, device=device_of(cell.execution.device))
    streams = Streams(cell.seed, cell.sham)
    model = weights.load(base, folder / WEIGHTS, cell, streams=streams)
    return model, recording.read_history(folder)


def base_name(cell: Cell, identity: Identity) -> str:
    """Return where PEFT finds the cell's base model: its hub id or its folder."""
    return cell.model.path if cell.model.source == "hub" else str(identity.files.folder)
