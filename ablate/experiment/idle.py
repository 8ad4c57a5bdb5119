"""Settings that were given and do nothing in runs that have them. No torch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ablate.adapters import compatibility, registry
from ablate.config.overrides import key_of
from ablate.config.schema import Cell
from ablate.experiment.design import Named
from ablate.experiment.identity import OF_THE_CHANGE

EXECUTION = "execution."
SHOWN = 6  # values of a setting that are named


def idle(runs: Sequence[Named], aliases: Iterable[Named] = ()) -> list[str]:
    """Return a line for each setting that was given and does nothing in the trained `runs`.

    Of the settings of execution also where it does nothing in some of them; a factor of a study may
    be without effect under levels of another one.

    Args:
        runs: by their first names.
        aliases: their other names, which may give the setting other values.
    """
    asked = {key_of(line) for lines in {run.overrides for run in runs} for line in lines}
    found = _found(runs, asked)
    others = _found(aliases, asked)
    return list(_told(found, others, len(runs)))


def _found(runs: Iterable[Named], asked: set[str]) -> dict[str, list[tuple[str, str]]]:
    """Return the value and the reason of each setting without effect, for every run that has it."""
    found: dict[str, list[tuple[str, str]]] = {}
    known: dict[tuple[float, ...], list[tuple[str, str, str]]] = {}
    for run in runs:
        cell = run.cell
        parts = (cell.adapter, cell.optimizer, cell.masking, cell.regulariser, cell.train,
                 cell.evaluate, cell.execution, cell.loss)  # fmt: skip
        mark = (*map(id, parts), cell.rank, cell.plw, cell.embeddings == "trained")
        if mark not in known:
            known[mark] = list(_idle(cell, asked))
        for setting, value, reason in known[mark]:
            found.setdefault(setting, []).append((value, reason))
    return found


def _told(
    found: Mapping[str, list[tuple[str, str]]],
    others: Mapping[str, list[tuple[str, str]]],
    runs: int,
) -> Iterator[str]:
    for setting, cases in found.items():
        count = len(cases)
        if count == runs or setting.startswith(EXECUTION):
            every = [*cases, *others.get(setting, ())]
            values, reasons = (list(dict.fromkeys(column)) for column in zip(*every, strict=True))
            more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
            value = f"={','.join(values[:SHOWN])}{more}"
            some = "" if count == runs else f" in {count:,} of {runs:,} runs"
            yield f"{setting}{value}: has no effect{some} ({', '.join(reasons)})"


def _idle(cell: Cell, asked: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Yield each setting that does nothing in a cell, its value, and why."""
    if cell.execution.offload_optimizer:
        if not registry.trains_of_base(cell):
            why = f"adapter={cell.adapter.name} trains nothing of the base"
            yield "execution.offload_optimizer", "true", why
        elif cell.execution.device == "cpu":
            yield "execution.offload_optimizer", "true", "execution.device=cpu"
    for measure in set(OF_THE_CHANGE) & set(cell.evaluate.measures):
        if not compatibility.merges(cell):
            change = f"adapter={cell.adapter.name} on base_precision={cell.base_precision}"
            yield "evaluate.measures", measure, f"the change of {change} is no matrix"
    for setting in sorted(set(asked) & UNLESS.keys()):
        if reason := UNLESS[setting](cell):
            part, _, name = setting.rpartition(".")
            value = getattr(getattr(cell, part) if part else cell, name)
            yield setting, f"{value:g}" if isinstance(value, float) else str(value), reason


def _no_benchmark(cell: Cell) -> str:
    return "" if cell.evaluate.tasks else "no benchmark is scored"


def _no_moments(cell: Cell) -> str:
    used = cell.optimizer.kind != "adafactor"
    return "" if used else f"optimizer={cell.optimizer.name} does not use it"


def _no_eps(cell: Cell) -> str:
    used = cell.optimizer.kind not in ("adafactor", "lion")
    return "" if used else f"optimizer={cell.optimizer.name} does not use it"


def _no_ratio(cell: Cell) -> str:
    steps = cell.train.warmup_steps
    return "" if steps is None else f"train.warmup_steps={steps} counts instead"


def _no_cooldown(cell: Cell) -> str:
    return "" if cell.train.schedule == "trapezoid" else f"train.schedule={cell.train.schedule}"


def _no_rule(cell: Cell) -> str:
    return "loss.token_rule=none" if cell.loss.token_rule == "none" else ""


# Settings that a command gives, and why one does nothing in a cell; "" where it does.
UNLESS: Mapping[str, Callable[[Cell], str]] = {
    "plw": lambda c: (
        "" if "plw" in c.masking.weights.values() else f"masking={c.masking.name} does not use it"
    ),
    "rank": lambda c: (
        "" if registry.method(c.adapter).adapts else f"adapter={c.adapter.name} has no rank"
    ),
    "train.epochs": lambda c: (
        "" if c.train.max_steps is None else f"train.max_steps={c.train.max_steps} counts instead"
    ),
    "train.betas": _no_moments,
    "train.eps": _no_eps,
    "train.warmup_ratio": _no_ratio,
    "train.cooldown_ratio": _no_cooldown,
    "loss.token_rule_exponent": _no_rule,
    "loss.token_rule_scope": _no_rule,
    "regulariser.minkowski_p": lambda c: (
        "" if c.regulariser.minkowski else "regulariser.minkowski=0"
    ),
    "evaluate.limit": _no_benchmark,
    "evaluate.items": _no_benchmark,
    "evaluate.num_fewshot": _no_benchmark,
    "evaluate.fewshot_as_multiturn": _no_benchmark,
    "evaluate.max_new_tokens": _no_benchmark,
    "evaluate.run_code": _no_benchmark,
    "evaluate.heldout_rows": lambda c: "" if c.evaluate.heldout else "evaluate.heldout=[]",
    "evaluate.measure_rows": lambda c: "" if c.evaluate.measures else "evaluate.measures=[]",
}
