"""What a plan prints: readable at 80 columns, rows and steps told, aliases told by kind."""

import io
import math
import re

import pytest
from rich.console import Console

from ablate.commands.plan_view import render
from ablate.config.composer import config_loader
from ablate.experiment.aliases import aliases_by_kind
from ablate.experiment.cell_data import tokenised
from ablate.experiment.known import Assumed
from ablate.experiment.request import plan_grid
from ablate.experiment.summary import summarise

LOADER = config_loader()
PLANS = (
    "masking=instruction,none plw=0,0.1,1 adapter=full,lora,mora rank=2,8 seed=0,1",
    "model=llama_2_7b,smollm2_135m dataset=alpaca adapter=full,lora train=alpaca evaluate=open_llm",
    "model=pythia_160m dataset=dolly adapter=lora placement=attention optimizer=adafactor",
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("ablate.hub.unreachable", lambda: "no network")
    monkeypatch.setattr("ablate.models.folders._copy", lambda path, revision: None)


def planned(asked, out):
    return plan_grid([*asked.split(), f"out={out}"], known=Assumed(), loader=LOADER)


def printed(request, width):
    console = Console(file=io.StringIO(), width=width)  # a file: as piped
    render(summarise(request), console)
    return console.file.getvalue()


@pytest.mark.parametrize("asked", PLANS)
def test_a_plan_fits_80_and_120_columns_and_says_the_same(asked, tmp_path):
    request = planned(asked, tmp_path)
    narrow, wide = (printed(request, width) for width in (80, 120))
    for text, width in ((narrow, 80), (wide, 120)):
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
    assert sorted(narrow.split()) == sorted(wide.split())  # cells of a table may fold


@pytest.mark.parametrize("asked", PLANS)
def test_every_adapter_stands_in_one_line_with_its_numbers(asked, tmp_path):
    request = planned(asked, tmp_path)
    lines = printed(request, 80).splitlines()
    for row in summarise(request)["adapters"]:
        numbers = rf"  {row['adapter']}\b.* {row['trainable']:,} +{row['share']:.1%}"
        assert [line for line in lines if re.match(numbers, line)], row


@pytest.mark.parametrize(
    "further", ["", "train.epochs=0.5 train.batch_size=7", "train.max_steps=9", "train.epochs=1.5"]
)
def test_rows_tokens_and_steps_of_a_run_are_told(further, tmp_path):
    """Against the rows themselves and arithmetic of a step's rows."""
    request = planned(f"dataset.max_rows=90 {further}", tmp_path)
    (cell,) = (n.cell for n in request.design.cells if not n.cell.is_base)
    starts = tokenised(cell, "train").starts
    rows, train = len(starts) - 1, cell.train
    steps = train.max_steps or math.ceil(round(rows * train.epochs) / train.batch_size)
    text = " ".join(printed(request, 80).split())
    assert f"{rows} rows, {starts[-1]:,} tokens" in text
    assert f"a run takes {steps:,} steps of {train.batch_size} rows" in text


def test_of_batches_of_tokens_the_steps_are_told_as_about(tmp_path):
    text = printed(planned("train.batch_unit=tokens train.batch_size=900", tmp_path), 80)
    assert re.search(r"takes\s+about \d+ steps of 900\s+tokens", text)


def test_another_name_of_instruction_tuning_is_told_by_its_levels(tmp_path):
    request = planned(PLANS[0], tmp_path)
    told = {(k.levels, k.instead): k.count for k in aliases_by_kind(request.design)}
    assert told["masking=none plw=0", "masking=instruction"] == 2 * 5  # seeds x arms of one rank
    assert "masking=none plw=0 is the same run as masking=instruction" in printed(request, 80)
    assert sum(told.values()) == sum(named.alias for named in request.design.cells)


def test_the_kinds_of_aliases_hold_for_every_alias(tmp_path):
    """An alias with the levels of its kind changed to those said is the name of the same run."""
    design = planned(PLANS[0], tmp_path).design
    first = {tuple(n.levels.items()): n.key for n in design.cells}
    for named in (n for n in design.cells if n.alias):
        fitting = [
            kind for kind in aliases_by_kind(design)
            if all(str(named.levels[k]) in v.split(",") for k, v in _pairs(kind.levels))
            and first[tuple((named.levels | _typed(kind.instead, named.levels)).items())]
            == named.key
        ]  # fmt: skip
        assert fitting, named.levels


def _pairs(text):
    return [part.split("=") for part in text.split()]


def _typed(text, levels):
    return {k: type(levels[k])(v) for k, v in _pairs(text)}
