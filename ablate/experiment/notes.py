"""What a user must know of a grid before it runs: what a level leaves out, what is not kept."""

from collections.abc import Iterable, Sequence

from ablate.adapters import registry
from ablate.adapters.compatibility import lacking_here
from ablate.adapters.devices import draws_by_device
from ablate.adapters.init.spec import init_of
from ablate.adapters.stored import weights_bytes
from ablate.config.schema import Cell, Evaluate
from ablate.data.tokenise import NO_ANSWER_LEFT, Summary
from ablate.evaluate import chosen, sandbox
from ablate.evaluate.task_items import left_unscored
from ablate.evaluate.tasks_index import running_code
from ablate.experiment.design import Named
from ablate.experiment.idle import idle
from ablate.experiment.labels import Names
from ablate.experiment.lanes import left_alone
from ablate.experiment.tuned import ADAPTER_FACTOR
from ablate.micro.tasks import TASKS
from ablate.models.files import NO_LIMIT
from ablate.objective import rows_without

MB = 2**20


def notes(runs: Iterable[Named], aliases: Iterable[Named] = ()) -> list[str]:
    """Return a line for each thing that the runs do not do, or do not keep, as one might expect.

    Args:
        runs: by their first names.
        aliases: their other names, of which only settings without effect are told.
    """
    every = list(runs)
    runs = [run for run in every if not run.cell.is_base]
    levels = [line for run in runs for line in _of_levels(run.cell)]
    asked = evaluations(every)
    scores = [text for one in asked for text in (left_unscored(one), chosen.told(one)) if text]
    scores += _of_code(asked)
    lanes = list(filter(None, [left_alone(run.cell for run in runs)]))
    lacking = lacking_here(run.cell for run in every)
    levels = list(dict.fromkeys(levels))
    nothing = [*_nothing_scored(runs), *idle(runs, aliases)]
    few = _of_devices(runs)
    return [*lacking, *_of_rows(runs), *scores, *levels, *nothing, *lanes, *few, *_not_kept(runs)]


def _of_devices(runs: Sequence[Named]) -> list[str]:
    """Return a line for each thing that runs on several devices do otherwise than on one."""
    found: list[str] = []
    for run in runs:
        cell, execution = run.cell, run.cell.execution
        setting, rows = f"execution.devices={execution.devices}", cell.train.batch_size
        if execution.sharding == "full" and execution.checkpoint_minutes is not None:
            found.append(
                "execution.sharding=full: no checkpoints; a run that is stopped starts again"
            )
        if draws_by_device(cell, base_drops=run.identity.files.drops):
            found.append(f"{setting}: each device draws dropout and noise of its own: another run")
        if cell.train.batch_unit == "examples" and rows < execution.devices:
            found.append(f"{setting}: a step has {rows} rows (train.batch_size), so devices idle")
    return list(dict.fromkeys(found))


def _nothing_scored(runs: Sequence[Named]) -> list[str]:
    """Return a line on runs that are trained and not scored."""
    bare = [run.cell.evaluate for run in runs if not run.identity.asked]
    if not bare:
        return []
    names = ", ".join(dict.fromkeys(f"evaluate={evaluate.name}" for evaluate in bare))
    return [
        f"NOTHING IS SCORED of {len(bare):,} of {len(runs):,} runs ({names}): they are trained, "
        "and neither table nor report can compare them; evaluate.heldout=[test] scores the loss on "
        "held-out rows, and a later sweep scores what is kept of them"
    ]


def _of_code(asked: Sequence[Evaluate]) -> list[str]:
    """Return a line on what keeps the programs apart that a model writes, where any are run."""
    # Without the consent none is run: no file of a benchmark need be read.
    names = dict.fromkeys(n for one in asked if one.run_code for n in running_code(one.tasks))
    if not names:
        return []
    return [f"{', '.join(names)}: what the model writes is run here under {sandbox.described()}"]


def evaluations(runs: Iterable[Named]) -> list[Evaluate]:
    """Return the distinct ways in which runs are scored."""
    return list({repr(run.cell.evaluate): run.cell.evaluate for run in runs}.values())


def _of_rows(runs: Sequence[Named]) -> list[str]:
    """Return a line for each data set under each model whose training rows are lost or cut."""
    names = Names(part for run in runs for part in (run.cell.dataset, run.cell.model))
    several = len({names[run.cell.model] for run in runs}) > 1
    found: dict[str, None] = {}
    for run in runs:
        lost = rows_lost(run.cell, run.identity.data, positions=run.identity.files.max_positions)
        model = f" model={names[run.cell.model]}" * several
        if lost:
            found[f"dataset={names[run.cell.dataset]}{model}: {lost}"] = None
    return list(found)


def rows_lost(cell: Cell, data: Summary, *, positions: int) -> str:
    """Return how many training rows are left out, cut or without a chosen answer; "" for none.

    It also says why, and the cure.

    Args:
        cell: whose rows they are.
        data: the summary of its training part.
        positions: the tokens that its model can read.
    """
    limit = f"train.max_length={cell.train.max_length}"
    reasons = ", ".join(
        f"{count:,} {f'completion beyond {limit}' if why == NO_ANSWER_LEFT else why}"
        for why, count in data.dropped.items()
    )
    parts = []
    if data.dropped:
        left_out = sum(data.dropped.values())
        parts.append(f"{left_out:,} of {data.rows_in:,} training rows left out ({reasons})")
    if data.truncated:
        share = f"{data.truncated:,}" + f" of {data.rows_in:,} training rows" * (not parts)
        parts.append(f"{share} cut at {'it' if NO_ANSWER_LEFT in data.dropped else limit}")
    if bare := rows_without(cell.masking.turns, data.rows_by_answers):
        turns = f"masking.turns={list(cell.masking.turns)}"
        parts.append(f"{bare:,} of {data.rows:,} training rows have no answer of {turns}")
    text = ", ".join(parts)
    if (data.truncated or NO_ANSWER_LEFT in data.dropped) and cell.train.max_length < positions:
        most = f" (the model takes {positions:,} tokens)" if positions < NO_LIMIT else ""
        text += f"; a greater train.max_length keeps more{most}"
    return text


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
    if cell.model.source != "micro" and any(name in TASKS for name in cell.evaluate.tasks):
        found.append(
            f"evaluate={cell.evaluate.name}: asks about the embedded world, which no other model "
            "has read of; evaluate=none asks nothing, a suite (docs/ready.md) or "
            "evaluate.tasks=[...] something else"
        )
    if cell.train.full_rate:
        found.append(
            f"adapter={cell.adapter.name}: train.lr={cell.train.lr:g} is a rate of full tuning on "
            f"an adapter, whose best one is about {ADAPTER_FACTOR} times as high: a difference "
            "from full tuning may be one of their rates; train.lr=tuned takes a rate for each"
        )
    if control := init_of(cell)[0].control:
        found.append(f"init={cell.init.name}: a control: {control}")
    return found


def _not_kept(runs: Sequence[Named]) -> list[str]:
    """Return a line on weights above `execution.keep_weights_mb`, by adapter and base model."""
    names = Names(run.cell.model for run in runs)
    sizes: dict[str, list[float]] = {}
    limits: dict[str, float] = {}
    for run in runs:
        size = weights_bytes(run.cell, run.identity.files) / MB
        if size > run.cell.execution.keep_weights_mb:
            name = f"{run.cell.adapter.name} on {names[run.cell.model]}"
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
