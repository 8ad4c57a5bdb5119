"""What a run is: the canonical description whose hash is its key.

`train_key` hashes what determines the trained weights, and nothing else: the content of the data
and of the base model, the loss in canonical form, the adapter's capacity, the optimizer, the
schedule and the seed. Names of levels are left out, so two names of one run have one key.
`score_key` adds one benchmark, held-out loss or measure.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ablate.adapters import compatibility, registry
from ablate.adapters.devices import draws_by_device
from ablate.adapters.init.spec import init_of
from ablate.adapters.optimizers import optimizer_of
from ablate.adapters.start import decays_to_start
from ablate.config.build import plain
from ablate.config.schema import Cell, Evaluate, Model, Regulariser, Train
from ablate.data.tokenise import Summary
from ablate.errors import UserError, unknown
from ablate.evaluate import chosen
from ablate.evaluate.tasks_index import check_measures, check_tasks, task_label, task_version
from ablate.experiment.known import Here
from ablate.experiment.labels import label
from ablate.models.files import ModelFiles
from ablate.objective import canonical, check_turns, effective_plw, objective_of

# Increased by a change that alters trained weights on purpose: older records then do not match.
NUMERICS_VERSION = 1
# Increased by a change to how chat prompts are made or answered: their scores then do not match.
CHAT_VERSION = 2
KEY_LENGTH = 16
LENGTH = "generation_length"  # the measure that needs prompts that were held out
# They need the weight change as a matrix.
OF_THE_CHANGE = ("weight_distance", "weight_spectrum", "spectrum_counts")
WITHOUT_MODEL = (*OF_THE_CHANGE, "train_loss_rsd")  # measures that compute nothing with the model


Asked = tuple[str, str, str]  # kind, name, and the end of the text that a unit's key is hashed of


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing to score on a trained model, with its key."""

    kind: str  # task, heldout or measure
    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Identity:
    """A cell's keys, what they were hashed from, and the facts about its data.

    What is made from a few shared objects is made when it is asked for: a grid may have a million
    cells.
    """

    train_key: str
    asked: tuple[Asked, ...]  # of what is scored
    files: ModelFiles
    data: Summary
    effective_plw: float | None  # None where the completion has no weight
    made_of: tuple[Cell, Mapping[str, Any], "Memo"]  # the cell, its loss, what cells share

    @property
    def description(self) -> dict[str, Any]:
        """What the train key was hashed from."""
        cell, loss, memo = self.made_of
        return _described(cell, self.files, self.data, loss, memo)

    @property
    def units(self) -> tuple[Unit, ...]:
        """What is scored; a key is that of the list of train_key, kind and what is asked."""
        begin = f'["{self.train_key}",'
        return tuple(Unit(kind, name, _hashed(begin + rest)) for kind, name, rest in self.asked)


def digest(value: object) -> str:
    """Return the key of a JSON-ready value; the order of its entries does not matter."""
    return _hashed(_text(value))


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


class Memo:
    """Caches what the cells of one grid share; valid while the files do not change.

    Cells share the parts of their configuration as objects, so a part is looked up by its `id`. The
    memo keeps the part alive so that its id is not reused.
    """

    def __init__(self, known: Here | None = None) -> None:
        """Start with nothing cached; `known` is where models and data are found."""
        self.known = known or Here()
        self._parts: dict[tuple[Any, ...], tuple[object, Any]] = {}

    def get(self, part: object, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Return the cached result of `make` for `part`; `key` holds what else it depends on."""
        return self.joint((part,), key, make)

    def joint(
        self, parts: tuple[object, ...], key: tuple[Any, ...], make: Callable[[], Any]
    ) -> Any:
        """Return the cached result of `make` for several parts together."""
        full = (*map(id, parts), *key)
        if full not in self._parts:
            self._parts[full] = (parts, make())
        return self._parts[full][1]

    def files(self, model: Model) -> ModelFiles:
        """Return the files of a base model."""
        found: ModelFiles = self.get(model, ("files",), lambda: self.known.files(model))
        return found


def identify(cell: Cell, memo: Memo | None = None) -> Identity:
    """Return the identity of `cell`; its data are tokenised unless their summary is cached.

    Raises:
        UserError: the model or the data cannot be used, or the combination of levels is illegal.
    """
    memo = memo or Memo()
    files = memo.files(cell.model)
    data = part_summary(cell, files, "train", memo)
    loss, prompt_weight = memo.joint(
        (cell.masking, data),
        ("loss", cell.plw, cell.completion_weight, cell.loss, cell.is_base),
        lambda: _loss(cell, data),
    )
    _check_fit(cell, files, data)
    _check_schedule(cell, files, data, memo)
    return Identity(
        train_key=digest(_described(cell, files, data, loss, memo)),
        asked=_asked(cell, files, memo),
        files=files,
        data=data,
        effective_plw=prompt_weight,
        made_of=(cell, loss, memo),
    )


def _loss(cell: Cell, data: Summary) -> tuple[dict[str, object], float | None]:
    """Return the loss in canonical form, and the effective PLW."""
    objective = objective_of(cell)
    weight = 0.0 if cell.is_base else effective_plw(objective, dict(data.counts))
    return canonical(objective, data), weight


def part_summary(cell: Cell, files: ModelFiles, part: str, memo: Memo) -> Summary:
    """Return the summary of one part of the cell's data under its model's tokenizer."""
    train = cell.train
    found: Summary = memo.get(
        cell.dataset,
        (part, files.content_hash, cell.model.chat_template, train.max_length, train.boundary),
        lambda: memo.known.summary(cell, files, part),
    )
    return found


def _check_fit(cell: Cell, files: ModelFiles, data: Summary) -> None:
    if not cell.is_base:
        check_turns(cell.masking, data.rows_by_answers)
    virtual = registry.virtual_tokens(cell, files.linear_shapes)
    if data.max_length + virtual > files.max_positions:
        before = f" behind {virtual} virtual ones" if virtual else ""
        raise UserError(
            f"train.max_length={cell.train.max_length}: the longest row has {data.max_length} "
            f"tokens{before} and model={label(cell.model)} has {files.max_positions} positions"
        )
    if data.largest_id >= files.vocab_size:
        raise UserError(
            f"model={label(cell.model)}: its tokenizer makes the id {data.largest_id}, its "
            f"vocabulary ends at {files.vocab_size - 1}; resize the embedding first"
        )
    if cell.loss.scope == "microbatch" and cell.execution.layout == "packed":
        raise UserError(
            "loss.scope=microbatch: not with execution.layout=packed, where a micro-batch is "
            "whatever fits; use scope batch or example"
        )
    if cell.loss.scope == "microbatch" and cell.execution.micro_batch_tokens is not None:
        raise UserError(
            f"execution.micro_batch_tokens={cell.execution.micro_batch_tokens}: not with "
            "loss.scope=microbatch, whose loss depends on the split; set micro_batch_size"
        )


def _check_schedule(cell: Cell, files: ModelFiles, data: Summary, memo: Memo) -> None:
    """Refuse a run that is too short for what its adapter does at certain steps."""
    schedule = registry.method(cell.adapter).schedule
    if schedule is None:
        return
    train = cell.train
    by_tokens = train.batch_unit == "tokens"  # only then the order of the rows matters
    order = (cell.seed, cell.sham) if by_tokens else ()
    steps = memo.joint(
        (train, data, cell.dataset),
        ("steps", *order),
        lambda: memo.known.steps(cell, files, data),
    )
    schedule(steps, registry.settings(cell.adapter))


def _capacity(cell: Cell, files: ModelFiles) -> dict[str, Any]:
    compatibility.check(cell, architecture=files.architecture, shapes=files.linear_shapes)
    registry.check(cell, files.linear_shapes)
    found = registry.capacity(cell, files.linear_shapes)
    if "init" in found:  # a default option, given or left out, is the same start
        found["init"] = [cell.init.kind, init_of(cell)[1]]
    return found


def _described(
    cell: Cell, files: ModelFiles, data: Summary, loss: Mapping[str, Any], memo: Memo
) -> dict[str, Any]:
    return _describe(cell, files, data, memo) | ({} if cell.is_base else {"loss": loss})


def _describe(cell: Cell, files: ModelFiles, data: Summary, memo: Memo) -> dict[str, Any]:
    base = {"numerics": NUMERICS_VERSION, "model": files.content_hash}
    if cell.is_base:
        compatibility.check(cell, architecture=files.architecture)
        exact = cell.base_precision == "fp32"
        return base if exact else base | {"base_precision": cell.base_precision}
    train = cell.train
    schedule: dict[str, Any] = {
        "lr": train.lr,
        "optimizer": [*train.betas, train.eps, train.weight_decay],
        "rule": [cell.optimizer.kind, optimizer_of(cell.optimizer)[1]],
        "schedule": _schedule(train),
        "length": [train.epochs, train.max_steps, train.batch_size, train.batch_unit],
        "clip": train.clip,
        "precision": train.precision,
    }
    if registry.trains_half(cell):
        schedule["rounding"] = optimizer_of(cell.optimizer)[0].rounding
    if cell.base_precision == "nf4" and train.precision == "bf16":
        schedule["packed"] = "bf16"  # of the 4-bit layers, which once computed in fp32 regardless
    if decays_to_start(cell):
        schedule["decay"] = "to the start"
    if draws_by_device(cell, base_drops=files.drops):
        schedule["devices"] = cell.execution.devices
    if cell.loss.scope == "microbatch":  # only here does the split of a step change the objective
        rows = cell.execution.micro_batch_size
        schedule["micro_batch_size"] = None if rows == "auto" else rows  # both: the whole step
    return base | {
        "data": data.content_hash,
        "adapter": memo.get(cell.adapter, _around(cell, files), lambda: _capacity(cell, files)),
        "regulariser": memo.get(cell.regulariser, ("plain",), lambda: _plain(cell.regulariser)),
        "base_precision": cell.base_precision,
        "embeddings": cell.embeddings,
        "train": schedule,
        "seed": [cell.seed, cell.sham],
    }


def _schedule(train: Train) -> list[Any]:
    """Return a schedule; what came later is there only where it has an effect, so keys stay."""
    steps = train.warmup_steps
    found: list[Any] = [train.schedule, train.warmup_ratio if steps is None else {"steps": steps}]
    if train.schedule == "trapezoid":
        found.append(train.cooldown_ratio)
    return [*found, train.min_lr_ratio] if train.min_lr_ratio else found


def _plain(regulariser: Regulariser) -> dict[str, Any]:
    return {k: v for k, v in plain(regulariser).items() if k != "name"}


def _around(cell: Cell, files: ModelFiles) -> tuple[Any, ...]:
    """Return all that the capacity of an adapter and its compatibility depend on."""
    factors = (cell.init, cell.optimizer, cell.placement, cell.base_precision)
    execution = cell.execution
    run = (execution.layout, execution.device, execution.offload_optimizer, execution.compile)
    acting = repr(cell.regulariser) if execution.sharding == "full" else ""
    spread = (execution.devices, execution.sharding, cell.loss.scope, acting)
    text = (cell.dataset.template, cell.dataset.format)
    return (cell.rank, files.content_hash, *run, *spread, *text, *map(repr, factors))


def _asked(cell: Cell, files: ModelFiles, memo: Memo) -> tuple[Asked, ...]:
    """Return what is scored, one object for all cells that ask for the same."""
    found: tuple[Asked, ...] = memo.joint(
        (cell.evaluate, cell.dataset, cell.model, cell.adapter),
        ("units", cell.train.max_length, cell.train.boundary, cell.base_precision),
        lambda: tuple((k, n, _text([k, *rest])[1:]) for k, n, rest in _wanted(cell, files, memo)),
    )
    return found


def _wanted(cell: Cell, files: ModelFiles, memo: Memo) -> list[tuple[str, str, list[Any]]]:
    """Return kind, name and what is asked of everything that a cell is scored on."""
    wanted = cell.evaluate
    # Only where it is another: scores from before there was a choice keep their keys.
    how = [] if wanted.precision == "fp32" else [wanted.precision]
    prompts: list[Any] = [False]
    if cell.dataset.template == "chat":
        shots = "turns" if wanted.fewshot_as_multiturn else "one turn"
        prompts = [(cell.model.chat_template or "own", shots, CHAT_VERSION)]
    found: list[tuple[str, str, list[Any]]] = memo.get(
        wanted, ("tasks", *prompts), lambda: _benchmarks(wanted, [*prompts, *how])
    )
    for part in wanted.heldout:
        held = part_summary(cell, files, part, memo)
        asked = [held.content_hash, wanted.heldout_rows, *how]
        found = [*found, ("heldout", part, [part, asked])]
    if not cell.is_base:  # a measure compares the trained model with its base
        data = part_summary(cell, files, "train", memo).content_hash
        rest = [data, wanted.measure_rows]
        if LENGTH in wanted.measures:
            part_summary(cell, files, "test", memo)
        measures = [
            n for n in wanted.measures if n not in OF_THE_CHANGE or compatibility.merges(cell)
        ]
        for name in measures:
            asked = rest if name in WITHOUT_MODEL else [*rest, *how]
            found = [*found, ("measure", name, [name, asked])]
    return found


def _benchmarks(wanted: Evaluate, prompts: list[Any]) -> list[tuple[str, str, list[Any]]]:
    """Return the benchmarks to score; `prompts` holds how chat prompts are made, if they are."""
    check_tasks(wanted.tasks, run_code=wanted.run_code)
    for task in wanted.num_fewshot if isinstance(wanted.num_fewshot, Mapping) else ():
        if task not in wanted.tasks:
            raise unknown("evaluate.num_fewshot", task, wanted.tasks)
    check_measures(wanted.measures)
    rest = [wanted.max_new_tokens, *prompts]
    return [
        ("task", n, [task_label(n), [task_version(n), _items(wanted, n), wanted.shots(n), *rest]])
        for n in wanted.tasks
    ]


def _items(wanted: Evaluate, name: str) -> Any:
    """Return which items of a benchmark are scored: of chosen ones the numbers, not their table."""
    found = chosen.of(wanted, name)
    return {"items": {task: list(ids) for task, ids in found.items()}} if found else wanted.limit
