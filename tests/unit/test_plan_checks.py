"""What a plan refuses or says before anything is trained, and what it expects to do."""

import ast
import dataclasses
import gc
import inspect
import io
import itertools
import tracemalloc
import typing

import pandas as pd
import pytest
from rich.console import Console

from ablate.adapters import registry
from ablate.adapters.method import load_attribute
from ablate.commands.plan_view import render
from ablate.config import schema
from ablate.config.build import typed
from ablate.config.command import Command
from ablate.config.compose import expand
from ablate.config.composer import config_loader
from ablate.data import batches
from ablate.errors import UserError
from ablate.experiment.cell_data import tokenised
from ablate.experiment.cost import cost
from ablate.experiment.design import _entry
from ablate.experiment.identity import Memo, identify
from ablate.experiment.known import Assumed, Here
from ablate.experiment.notes import notes
from ablate.experiment.request import check_machine, plan_grid
from ablate.experiment.summary import summarise
from ablate.results import record
from ablate.results.store import Store
from ablate.streams import Streams
from analysis.errors import AnalysisError
from analysis.table.frame import from_results
from tests import stored

LOADER = config_loader()


def the_cell(*overrides):
    """The one trained cell of a request."""
    (named,) = (n for n in plan_grid(overrides, loader=LOADER).design.cells if not n.cell.is_base)
    return named


# --- adapters that act at certain steps


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("adapter=adalora train.max_steps=3", "leave no step to prune in a run of 3"),
        ("adapter=adalora train.epochs=0.01", "leave no step to prune in a run of 1"),
        ("adapter=adalora train.batch_unit=tokens train.batch_size=1000000 train.epochs=1",
         "leave no step to prune in a run of 1"),
        ("adapter=remora train.max_steps=1", "no restart falls into a run of 1 steps"),
        ("adapter=relora adapter.options.every=9 train.max_steps=9", "every=9: no restart"),
    ],
)  # fmt: skip
def test_a_plan_refuses_a_run_that_is_too_short_for_its_adapter(asked, said):
    for known in (Here(), Assumed()):
        with pytest.raises(UserError, match=said):
            plan_grid(asked.split(), known=known, loader=LOADER)


def test_runs_that_are_just_long_enough_are_planned():
    for asked in ("adapter=adalora train.max_steps=4", "adapter=remora train.max_steps=2"):
        plan_grid(asked.split(), loader=LOADER)


@pytest.mark.parametrize(
    "asked",
    [f"train.batch_unit={unit} train.batch_size={size} train.epochs={epochs} seed={seed}"
     for (unit, size), epochs, seed in itertools.product(
         [("examples", 7), ("examples", 5000), ("tokens", 40), ("tokens", 3000)],
         [0.05, 0.5, 1], [0, 3])],
)  # fmt: skip
def test_a_plan_knows_the_number_of_steps(asked):
    named = the_cell(*asked.split(), "dataset.max_rows=90")
    cell, data = named.cell, tokenised(named.cell, "train")
    stream = Streams(cell.seed, cell.sham).numpy("order")
    taken = batches.order(data, train=cell.train, generator=stream)
    for known in (Here(), Assumed()):
        assert known.steps(cell, named.identity.files, data.summary) == len(taken)


def test_of_rows_that_are_not_here_the_steps_are_counted_by_their_mean_length():
    asked = ("model=llama_2_7b dataset=alpaca train.batch_unit=tokens train.batch_size=2048"
             " adapter=adalora train.epochs=0.01 train.lr=1e-4")  # fmt: skip
    known = Assumed()
    named = next(
        n
        for n in plan_grid(asked.split(), known=known, loader=LOADER).design.cells
        if n.cell.rank == 8
    )
    data = named.identity.data
    steps = known.steps(named.cell, named.identity.files, data)
    assert steps == pytest.approx(0.01 * data.tokens / 2048, abs=1)


def test_hooks_refuse_nothing_that_a_plan_could_have_refused():
    """A module of hooks that raises a user's error names a schedule, which plans ask."""
    for kind, row in registry.KINDS.items():
        if not row.hooks:
            continue
        module = inspect.getmodule(load_attribute(row.hooks))
        raised = [n for n in ast.walk(ast.parse(inspect.getsource(module)))
                  if isinstance(n, ast.Raise) and "UserError" in ast.dump(n)]  # fmt: skip
        assert not raised, kind


def test_a_worker_checks_again():
    """A bundle's cell is identified anew: a library's caller is refused as a plan is."""
    named = the_cell("adapter=adalora", "train.max_steps=4")
    short = dataclasses.replace(
        named.cell, train=dataclasses.replace(named.cell.train, max_steps=3)
    )
    with pytest.raises(UserError, match="a run of 3"):
        identify(short, Memo())


# --- messages of settings that may be null


def _optional(kind):
    """Every setting of a class that may be null, by its path."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from (f"{name}.{inner}" for inner in _optional(hint))
        elif type(None) in typing.get_args(hint):
            yield name


@pytest.fixture(scope="module")
def trees():
    """A cell's composed tree and the settings of a command, as classes read them."""
    grid = expand([], loader=LOADER)
    return {schema.Cell: grid.points[0].tree, Command: grid.settings}


def refusals(trees, kind, setting):
    """What is said of values of a setting that it cannot have."""
    group, _, name = setting.rpartition(".")
    for value in ({"a": [1]}, [[1]], -1, -1.5):
        given = {**trees[kind][group], name: value} if group else value
        try:
            typed(kind, {**trees[kind], group or name: given})
        except UserError as error:
            yield str(error)


OPTIONAL = [(kind, name) for kind in (schema.Cell, Command) for name in _optional(kind)]


def test_the_settings_that_may_be_null_are_found():
    names = {name for _, name in OPTIONAL}
    assert {"execution.micro_batch_tokens", "gpu_gb", "train.clip"} <= names
    assert len(names) > 15


@pytest.mark.parametrize(("kind", "setting"), OPTIONAL)
def test_a_message_about_a_setting_that_may_be_null_says_so(kind, setting, trees):
    """Whatever is refused of it: another type, or a number out of range."""
    told = [line for line in refusals(trees, kind, setting) if "must be" in line]
    assert told
    if setting != "bundle":  # a command line may not give it
        assert all("null" in line for line in told if line.startswith(f"{setting}=")), told


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("evaluate.num_fewshot={gsm8k:many}", "evaluate.num_fewshot.gsm8k=many: must be a whole"),
        ("evaluate.num_fewshot={gsm8k:-1}", "evaluate.num_fewshot.gsm8k=-1: must be at least 0"),
        ("evaluate.num_fewshot=many", "must be a whole number or a table or null"),
        ("placement.layers=[0,x]", r"placement.layers\[1\]=x: must be a whole number"),
        ("evaluate.measure_rows=0", "evaluate.measure_rows=0: must be at least 1"),
    ],
)
def test_a_message_names_the_entry_that_is_wrong(asked, said):
    with pytest.raises(UserError, match=said):
        plan_grid([asked], loader=LOADER)


# --- what does nothing, and what is missing


def told(asked, *, out="results/none"):
    """The notes of a plan."""
    cells = plan_grid([*asked.split(), f"out={out}"], loader=LOADER).design.runs.values()
    return notes([names[0] for names in cells], [name for names in cells for name in names[1:]])


IDLE = [
    ("execution.offload_optimizer=true",
     "execution.offload_optimizer=true: has no effect (adapter=lora trains nothing of the base)"),
    ("execution.offload_optimizer=true adapter=full execution.device=cpu",
     "execution.offload_optimizer=true: has no effect (execution.device=cpu)"),
    ("execution.offload_optimizer=true adapter=lora,full",
     "execution.offload_optimizer=true: has no effect in 1 of 2 runs (adapter=lora trains"),
    ("execution.lanes=4", "execution.lanes=4: 1 of 1 runs train alone (1 without another"),
    ("execution.lanes=4 seed=0,1 execution.compile=true",
     "execution.lanes=4: 2 of 2 runs train alone (2 with execution.compile=true)"),
    ("plw=0.5", "plw=0.5: has no effect (masking=instruction does not use it)"),
    ("plw=0.5,0.1", "plw=0.5,0.1: has no effect (masking=instruction"),
    ("execution.lanes=4 seed=0,1 regulariser.neftune=5",
     "execution.lanes=4: 2 of 2 runs train alone (2 with regulariser.neftune=5)"),
    ("rank=4 adapter=full", "rank=4: has no effect (adapter=full has no rank)"),
    ("train.epochs=2 train.max_steps=9", "train.epochs=2: has no effect (train.max_steps=9"),
    ("optimizer=adafactor train.eps=1e-6", "train.eps=1e-06: has no effect (optimizer=adafactor"),
    ("loss.token_rule_exponent=3",
     "loss.token_rule_exponent=3: has no effect (loss.token_rule=none)"),
    ("evaluate=none evaluate.limit=5", "evaluate.limit=5: has no effect (no benchmark is scored)"),
    ("evaluate=none evaluate.heldout=[] evaluate.heldout_rows=9",
     "evaluate.heldout_rows=9: has no effect (evaluate.heldout=[])"),
    ("evaluate.measures=[weight_distance] adapter=alora",
     "evaluate.measures=weight_distance: has no effect (the change of adapter=alora on"),
    ("evaluate.measures=[spectrum_counts] adapter=alora",
     "evaluate.measures=spectrum_counts: has no effect (the change of adapter=alora on"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "said"), IDLE)
def test_a_setting_that_does_nothing_is_told(asked, said):
    assert [line for line in told(asked) if line.startswith(said)], told(asked)


@pytest.mark.parametrize(
    "asked",
    [
        "execution.offload_optimizer=true adapter=full",
        "execution.offload_optimizer=true embeddings=trained",
        "execution.lanes=4 seed=0,1",
        "plw=0.5 masking=none",
        "plw=0,0.5 masking=none,instruction",
        "rank=4 adapter=lora,full",
        "train.epochs=2",
        "train.max_steps=9",
        "train.eps=1e-6",
        "evaluate.limit=5",
        "evaluate=none evaluate.limit=5 evaluate.tasks=[micro_lives]",
        "evaluate.measures=[weight_distance]",
    ],
)
def test_a_setting_that_does_something_is_not(asked):
    assert not [line for line in told(asked) if "no effect" in line or "execution.lanes" in line]


def test_runs_that_nothing_is_scored_of_are_told():
    (line,) = (n for n in told("evaluate=none evaluate.heldout=[] seed=0,1") if "SCORED" in n)
    assert line.startswith("NOTHING IS SCORED of 2 of 2 runs (evaluate=none): they are trained")
    assert not [n for n in told("evaluate=none") if "SCORED" in n]


def test_a_run_that_nothing_is_scored_of_has_a_row_in_the_table(results_entry):
    """The table is not empty, and the report says why it is none."""
    name, recorded = results_entry
    rows = record.rows_of(name | {"score_keys": []}, recorded | {"scores": []})
    assert [row["train_seconds"] for row in rows] == [recorded["costs"]["train_seconds"]]
    frame = pd.DataFrame(rows, columns=[*record.RESULT_COLUMNS])
    with pytest.raises(AnalysisError, match=r"no run has a score; evaluate\.heldout"):
        from_results(frame)


@pytest.fixture
def results_entry():
    """The name and record of a run, as far as a row of the table needs them."""
    (named,) = (n for n in plan_grid([], loader=LOADER).design.cells if not n.cell.is_base)
    costs = dict.fromkeys(record.COSTS, 1.0) | {"train_seconds": 12.5}
    facts = {"parameters": {"trainable": 1, "base": 2, "budget": None}, "costs": costs}
    return _entry(named, "none") | {"status": "done"}, facts


def test_compiling_needs_a_compiler(monkeypatch):
    asked = [n.cell for n in plan_grid(["execution.compile=true"], loader=LOADER).design.cells]
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"execution.compile=true: needs a C\+\+ compiler"):
        check_machine(asked)
    check_machine(c for c in asked if c.is_base)


# --- what is left to do


def test_a_plan_tells_what_trains_from_what_is_only_scored(tmp_path):
    """Time, disk and count of a run whose weights are kept are those of its missing benchmarks."""
    asked = ["masking=none", "seed=0,1,2", "evaluate.tasks=[micro_lives]", f"out={tmp_path}"]
    first = plan_grid(asked, loader=LOADER).design
    base, *trained = first.runs
    new = [*asked, "evaluate.tasks=[micro_lives,micro_pronouns]"]

    def costs():
        request = plan_grid(new, loader=LOADER)
        return cost((names[0] for names in request.design.runs.values()), Store(tmp_path)), request

    fresh, _ = costs()
    store = Store(tmp_path)
    store.prepare()
    for key in (base, *trained[:2]):  # the second of the trained ones has no weights left
        units = [unit.key for unit in first.runs[key][0].identity.units]
        stored.put(tmp_path, key, score_keys=units)
    (tmp_path / "cells" / trained[0] / "weights").mkdir()
    left, request = costs()
    assert (fresh.trains, left.trains) == (4, 2)
    of_base, kept, lost, never = zip(fresh.by_run, left.by_run, strict=True)
    assert of_base[1] == pytest.approx(of_base[0] / 2)  # one of two benchmarks of equal size
    assert kept[1] == pytest.approx(of_base[1])
    assert lost[1] == pytest.approx(never[0] - of_base[0] + of_base[1])
    assert never[1] == never[0]
    summary = summarise(request)
    assert (summary["to_do"], summary["to_train"]) == (4, 2)
    console = Console(file=io.StringIO(), width=200)
    render(summary, console)
    assert "4 to do (2 to train, 2 to score only)" in console.file.getvalue()


def test_a_cell_of_a_large_grid_takes_little_memory():
    """What cells share is one object: a million cells fit into 2 GiB, all that a plan keeps."""
    few, many = (["masking=none", "plw=0,0.1,0.5", f"seed=range(0,{n})"] for n in (100, 500))
    plan_grid(few, loader=LOADER)  # what is read and cached once
    sizes = []
    for asked in (few, many):
        tracemalloc.start()
        request = plan_grid(asked, loader=LOADER)
        gc.collect()  # cycles, and the interpreter's lists of free tuples: the plan keeps neither
        sizes.append((tracemalloc.get_traced_memory()[0], len(request.design.cells)))
        tracemalloc.stop()
    (low, some), (high, more) = sizes
    assert (high - low) / (more - some) < 2000
