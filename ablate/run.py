"""One run, from its configuration to its record: the file to read first.

    data -> model -> adapter -> train -> evaluate -> record

Several cells may be names of one run (aliases, or the same run asked for other scores): it is
trained once and scored for all of them.
"""

import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ablate import group, recording, tracking
from ablate.adapters import build, hooks, optimizers, weights
from ablate.adapters.devices import draws_by_device
from ablate.adapters.stored import weights_bytes
from ablate.beside import Trained
from ablate.config.build import plain
from ablate.config.schema import Cell
from ablate.data.tokenise import Tokenised
from ablate.errors import UserError
from ablate.evaluate import lanes
from ablate.evaluate.scores import TaskScore
from ablate.evaluate.scoring import Wanted, ready, score
from ablate.experiment.cell_data import tokenised
from ablate.experiment.identity import Identity, identify
from ablate.experiment.labels import label
from ablate.experiment.notes import rows_lost
from ablate.models.load import CPU, computing_in, device_of, load
from ablate.objective import objective_of
from ablate.results import heart
from ablate.results.log import LOG, logged, say
from ablate.results.record import RECORD
from ablate.results.store import Store
from ablate.streams import Streams
from ablate.telling import Hear, Telling
from ablate.training import stop
from ablate.training.checkpoints.keeper import Checkpoints, checkpoints
from ablate.training.distributed import is_first, processes, wait_for_all
from ablate.training.history import Diverged, Entry, Result, check_same
from ablate.training.hooks import combine
from ablate.training.loop import train
from ablate.training.regularisation.dropout import draws
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
        MemberFailed: of a cell on several devices, one of its processes failed.
        UserError: weights were not kept, and training again gave others.
    """
    recorded = store.record(key)
    if recorded is not None and not _missing(cells, recorded):  # another sweep was faster
        return
    opened = store.writing if recorded is None else store.amending
    with opened(key) as draft, logged(draft / LOG):
        trained = recorded is None and (draft / RECORD).exists()
        execution = cells[0].execution
        if execution.devices > 1:
            order = _order(cells, key, store, draft) | {"recorded": recorded, "trained": trained}
            group.carry_out(execution, order)
            return
        group.close()  # processes of another cell, which hold its memory
        carry_out(cells, key, store, draft, recorded=recorded, trained=trained, beside=beside)


def _order(cells: Sequence[Cell], key: str, store: Store, draft: Path) -> dict[str, Any]:
    """Return the arguments of `carry_out` as JSON has them."""
    return {
        "here": os.getcwd(),
        "cells": [plain(cell) for cell in cells],
        "key": key,
        "out": str(store.out),
        "draft": str(draft),
        "trackers": tracking.asked().plain(),
    }


def carry_out(
    cells: Sequence[Cell],
    key: str,
    store: Store,
    draft: Path,
    *,
    recorded: dict[str, Any] | None,
    trained: bool,
    beside: Trained | None = None,
) -> None:
    """Carry out a run in `draft`; of several processes that do (`group`) the first writes.

    Args:
        cells: names of the run.
        key: its key.
        store: where it is to be recorded.
        draft: the folder that becomes its record.
        recorded: its record, to which scores are to be added; None where there is none.
        trained: whether `draft` has what an earlier attempt trained.
        beside: what was trained of it already, beside others.
    """
    cell, identity, writes = cells[0], identify(cells[0]), is_first()
    torch.set_num_threads(cell.execution.threads)
    missing = _missing(cells, recorded)
    with tracking.tracked(cell, key) as track:
        if recorded is None:
            heart.at("the benchmarks")
            ready(missing)  # raises before training where a benchmark cannot be loaded
            keep = functools.partial(store.keep_trained, key, draft)
            kept = checkpoints(cell.execution, store.checkpoints(key))
            if trained and beside is None:
                say("trained by an earlier attempt, which ended while it was scored")
                model, history = restored(cell, draft)
            else:
                model, history = _safe(
                    cell, identity, draft=draft, keep=keep, beside=beside,
                    checkpoints=kept, hear=track.hear,
                )  # fmt: skip
        else:
            model, history = restored(cell, draft)
            if writes:
                _write_weights(model, draft, cell, identity)
        heart.at("scoring")
        wait_for_all()  # until what others read of the draft is read, and what they write written
        if not writes:
            score(model, history, missing)
            return
        record = recorded or json.loads((draft / RECORD).read_text())
        record, scores = _scored(record, model, history, missing)
        track.hear(history)  # what was not told while it trained
        track.scores(scores)
        heart.at("the record")
        write = recording.write if recorded is None else recording.amend
        write(record, scores, draft)
        _drop_large(draft, cell, identity)


def _safe(
    cell: Cell,
    identity: Identity,
    *,
    draft: Path,
    keep: Callable[[], None],
    beside: Trained | None,
    checkpoints: Checkpoints | None,
    hear: Hear,
) -> tuple[nn.Module, list[Entry]]:
    """Return the trained model and its history, once `draft` has them and `keep` has kept it."""
    heart.at("the data")
    if beside is not None:
        model, course = beside.model, beside.course
    else:
        data = tokenised(cell, "train")
        model, course = _trained(cell, identity, data, checkpoints=checkpoints, hear=hear)
    if isinstance(course, Diverged):
        raise course
    if is_first() and not (draft / RECORD).exists():
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
    cell: Cell,
    identity: Identity,
    data: Tokenised,
    *,
    checkpoints: Checkpoints | None = None,
    hear: Hear | None = None,
) -> tuple[nn.Module, Result]:
    """Return the cell's trained model and the course of training; the base is not trained."""
    streams = Streams(cell.seed, cell.sham)
    heart.at("the model")
    device = device_of(cell.execution.device)
    whole = cell.execution.sharding == "none" or cell.is_base
    # A model that trains in parts need not fit on one device: it is cut up from the memory here.
    base = load(identity.files, cell.base_precision, device=device if whole else CPU)
    heart.at("the adapter")
    content = identity.files.content_hash
    model = build.apply(base, cell, streams=streams, data=data, content_hash=content)
    if cell.is_base:
        return model, Result()
    known = draws_by_device(cell, base_drops=identity.files.drops)
    if processes() > 1 and draws(model) and not known:
        raise UserError(
            f"execution.devices={processes()}: not with model={label(cell.model)}, which drops "
            "numbers in training without a word of it in its configuration; must be 1"
        )
    say(f"training on {len(data)} rows, {len(data.ids)} tokens")
    if lost := rows_lost(cell, data.summary, positions=identity.files.max_positions):
        say(f"dataset={label(cell.dataset)}: {lost}")
    computing = computing_in(model, cell.train.precision)
    stopping, telling = stop.stopping_on_signals(), Telling(hear=hear)
    with computing, regularised(model, cell, streams=streams) as held, stopping:
        course = train(
            model,
            data,
            cell.train,
            objective=objective_of(cell),
            streams=streams,
            execution=cell.execution,
            hooks=combine(hooks.hooks(cell, streams=streams), held),
            tick=telling.tick,
            tell=telling.tell,
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
