"""What a plan refuses or says before anything is trained, and what it expects to do."""

import ast
import dataclasses
import inspect
import itertools
import typing

import pytest

from ablate.adapters import registry
from ablate.adapters.method import load_attribute
from ablate.config import schema
from ablate.config.build import typed
from ablate.config.command import Command
from ablate.config.compose import expand
from ablate.config.composer import config_loader
from ablate.data import batches
from ablate.errors import UserError
from ablate.experiment.cell_data import tokenised
from ablate.experiment.identity import Memo, identify
from ablate.experiment.known import Assumed, Here
from ablate.experiment.request import plan_grid
from ablate.streams import Streams

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
