"""Learning rates for data and models of one's own: grids, lookup, a run from end to end."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import ablate
from ablate.app import _launch_here, sweep_grid
from ablate.commands import tune as verb
from ablate.commands import tune_grids as grids
from ablate.commands.tune import tune
from ablate.config import build
from ablate.config.composer import Composer, config_loader
from ablate.config.overrides import key_of
from ablate.errors import UserError
from ablate.experiment.request import plan_grid
from ablate.experiment.tuned import Rates
from ablate.experiment.tuned_table import Tuned, arm_of, put
from ablate.terminal import CONSOLE
from tests.unit.test_tuning import run_tune, valley

MICRO = Path(ablate.__file__).parent / "micro" / "checkpoints" / "micro_0"
DATA = ("dataset=local", "dataset.path=rows.jsonl")
MODEL = ("model=local", "model.path=base")
DEFAULTS = {
    "full": 0.00074,
    "lora": 0.0074,
}  # 5e-5 (2000 / 64)^0.781 for a width of 64, and ten times


def write(path, rows, answer="It is {}."):
    lines = ({"instruction": f"Say {i}", "output": answer.format(i)} for i in range(rows))
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with rows and a base model."""
    monkeypatch.chdir(tmp_path)
    write("rows.jsonl", 40)
    shutil.copytree(MICRO, "base")
    return tmp_path


def cell_of(*words):
    parts = Composer(config_loader()).cell(list(words))
    return build.build({name: part.value for name, part in parts.items()})


def settings(request):
    return {key_of(word): word.partition("=")[2] for word in request}


def rates(request):
    return [float(rate) for rate in settings(request)["train.lr"].split(",")]


# -- the grid -----------------------------------------------------------------------------------


def test_each_adapter_starts_from_rates_around_its_default(folder):
    asked = grids.first(["study=tuning", *DATA, *MODEL, "adapter=lora,full,mora"], None)
    found = {settings(request)["adapter"]: rates(request) for request in asked}
    assert set(found) == {"lora,mora", "full"}
    for adapters, tried in found.items():
        assert len(tried) == 5
        assert tried[2] == DEFAULTS[adapters.split(",")[0]]
        assert [b / a for a, b in itertools.pairwise(tried)] == [2.0] * 4
    for request in asked:
        assert {settings(request)[k] for k in ("evaluate", "seed")} == {"validation", "1000"}


@pytest.mark.parametrize(
    "words",
    [
        (*DATA, *MODEL, "adapter=lora,full"),
        (*DATA, *MODEL, "adapter=lora", "rank=2,8"),
        (*DATA, "model=micro_0,micro_1", "adapter=lora,mora", "rank=2,8"),
        (*MODEL, "dataset=micro,micro_short", "adapter=lora,full", "init=default,pissa",
         "skip_illegal=true"),
    ],
)  # fmt: skip
def test_the_requests_hold_every_cell_at_its_rates_and_nothing_else(folder, words):
    asked = plan_grid(["study=tuning", "scale=own", *words]).design.cells
    wanted = {
        (arm_of(one.cell), one.cell.model.name, float(f"{one.cell.train.lr * 2.0**step:.4g}"))
        for one in asked
        if not one.cell.is_base
        for step in range(-2, 3)
    }
    got = [
        (arm_of(one.cell), one.cell.model.name, one.cell.train.lr)
        for request in grids.first(["study=tuning", *words], None)
        for one in plan_grid(request).design.cells
        if not one.cell.is_base
    ]
    assert set(got) == wanted
    assert len(got) == len(wanted)


def test_rates_and_studies_that_are_given_stand(folder):
    given = ["study=tuning", *DATA, "train.lr=1e-4,1e-3"]
    assert [rates(request) for request in grids.first(given, None)] == [[1e-4, 1e-3]]
    for asked in (
        ["study=adapter_screen", "scale=tuning", *DATA],
        ["study=tuning", "dataset=micro_short"],
    ):
        assert grids.first(asked, None) == [asked]


def test_only_what_is_best_at_an_end_is_widened(folder):
    """Two data sets have one name, and two adapters two optima."""
    write("more.jsonl", 30)

    def loss(cell):
        odd = (cell.dataset.path, cell.adapter.name) == ("more.jsonl", "lora")
        return valley(1e-3 if odd else DEFAULTS.get(cell.adapter.name, 1))(cell)

    both = ("dataset=local", "dataset.path=rows.jsonl,more.jsonl", *MODEL, "adapter=lora,full")
    status, asked, _ = run_tune(folder, loss, *both, save=True)
    assert status == 0
    first, wider = asked[:2], asked[2:-1]
    assert asked[-1] == [word for word in first[0] if word != "report=false"]  # and reported on
    assert all("study=tuning" in request for request in first)  # whose question the table answers
    assert not any(word.startswith(("study=", "scale=")) for request in wider for word in request)
    assert {settings(request)["dataset.path"] for request in first} == {"rows.jsonl,more.jsonl"}
    assert [settings(r)["dataset.path"] for r in wider] == ["more.jsonl"] * len(wider)
    assert [settings(r)["adapter"] for r in wider] == ["lora"] * len(wider)
    assert [rates(request) for request in wider] == [[0.000925], [0.0004625]]
    found = pd.read_csv("tuned.csv").set_index(["dataset_content", "adapter"])["lr"]
    assert sorted(found) == [0.00074, 0.00074, 0.000925, 0.0074]


def test_data_without_validation_rows_are_told_what_gives_them_some(folder):
    write("few.jsonl", 3)
    with pytest.raises(UserError, match=r"validation part holds no rows.*dataset.splits={train: "):
        run_tune(folder, valley(1), "dataset=local", "dataset.path=few.jsonl")


# -- the lookup ---------------------------------------------------------------------------------


def saved(lr, *words):
    cell = cell_of(*words)
    put([Tuned(**arm_of(cell)._asdict(), lr=lr)], Path("tuned.csv"))
    return cell


def rate(*words):
    (*_, named) = plan_grid([*words, "evaluate=none"]).design.cells
    return named.cell.train.lr, named.cell.train.untuned


def test_a_saved_rate_takes_the_default_s_place(folder):
    assert rate(*DATA, *MODEL) == (0.0074, True)
    saved(0.0123, *DATA, *MODEL)
    assert rate(*DATA, *MODEL) == (0.0123, False)
    assert rate(*DATA, *MODEL, "rank=16") == (0.0123, False)  # the nearest one tuned
    assert rate(*DATA, *MODEL, "adapter=full") == (0.00074, True)
    shutil.copy("rows.jsonl", "same.jsonl")
    assert rate("dataset=local", "dataset.path=same.jsonl", *MODEL) == (0.0123, False)


def test_what_is_only_called_alike_is_not_tuned(folder):
    saved(0.0123, *DATA, *MODEL)
    write("other.jsonl", 40, answer="No {}.")
    assert rate("dataset=local", "dataset.path=other.jsonl", *MODEL)[1]
    assert rate(*DATA, "model=micro_0", "+model.name=local")[1]
    assert rate("dataset=micro", "+dataset.name=local", *MODEL)[1]
    write("rows.jsonl", 41)  # one row more is another data set
    assert rate(*DATA, *MODEL)[1]


def test_rates_of_the_micro_world_are_not_for_what_is_called_so(folder):
    assert not rate("dataset=micro", "model=micro_0")[1]
    assert rate(*DATA, "dataset.name=micro")[1]
    assert rate(*MODEL, "model.name=micro_0", "dataset=micro")[1]


def test_data_of_the_hub_are_known_by_their_address(tmp_path):
    cell = cell_of("dataset=dolly", "model=qwen_3_8b")
    put([Tuned(**arm_of(cell)._asdict(), lr=0.02)], tmp_path / "mine.csv")
    tables = Rates(tmp_path / "mine.csv", folder=tmp_path / "none")
    assert tables.row(cell).lr == 0.02
    assert tables.from_own() == [tables.row(cell)]
    other = dataclasses.replace(cell.dataset, path="someone/else")
    assert tables.row(dataclasses.replace(cell, dataset=other)) is None


def test_a_table_that_is_named_must_be_there(folder):
    with pytest.raises(UserError, match=r"rates=nix.csv: no such file; ablate tune --save"):
        rate(*DATA, "rates=nix.csv")


def test_a_broken_table_is_no_reason_for_the_default(folder):
    Path("tuned.csv").write_text("model,lr\nlocal,1e-3\n")
    with pytest.raises(UserError, match=r"tuned.csv: needs the columns model, dataset"):
        rate(*DATA)


# -- from end to end ----------------------------------------------------------------------------


def test_a_rate_that_was_tuned_is_found_again(folder, monkeypatch):
    """Real runs of three steps, without a process for each."""
    monkeypatch.setattr(verb, "ROUNDS", 1)
    monkeypatch.setattr(grids, "AROUND", range(-1, 2))

    def sweep(words):
        sweep_grid(words, _launch_here)
        return 0

    words = [*DATA, *MODEL, "adapter=lora", "train.max_steps=3", "out=tuning"]
    status = tune(words, sweep=sweep, console=CONSOLE, save=True)
    table = pd.read_parquet("tuning/results.parquet").query("adapter != 'none'")
    losses = table.query("metric == 'loss_completion'").set_index("lr")["value"]
    assert len(losses) in (3, 4)  # widened once at most
    (row,) = pd.read_csv("tuning/tuned.csv").to_dict("records")
    assert row["lr"] == losses.idxmin()
    assert row["loss"] == pytest.approx(losses.min(), rel=1e-12)
    tuned = plan_grid([*DATA, *MODEL, *(["rates=tuning/tuned.csv"] if status else [])])
    lr = tuned.design.cells[-1].cell.train.lr
    assert lr == (row["lr"] if status == 0 else 0.0074)
    assert tuned.design.cells[-1].cell.train.untuned is (status == 1)
