"""`plan --power`, `--freeze` and `--fraction`: from the command line to what a sweep would run."""

import json

import pytest

from ablate.cli import main
from ablate.experiment.request import plan_grid
from tests.fake_results import fake_results

STUDY = ["study=quick", "seed=0,1", "adapter=full,lora", "rank=8", "dataset=micro"]


def planned(capsys, *words):
    assert main(["plan", *STUDY, *words, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def pilot(tmp_path):
    file = tmp_path / "pilot.parquet"
    fake_results(plws=(0.0, 0.1, 1.0), controls=False).to_parquet(file)
    return file


def test_power_of_a_plan(capsys, pilot, tmp_path):
    asked = ["--power", f"--pilot={pilot}", "--effect=4", "--seeds=1,3", "--draws=10"]
    found = planned(capsys, f"out={tmp_path}/out", *asked)["power"]
    assert found["effect"] == 4
    assert {test["seeds"] for test in found["tests"]} == {1, 3}
    assert all(0 <= test["power"] <= 1 for test in found["tests"])
    assert main(["plan", *STUDY, f"out={tmp_path}/out", *asked]) == 0
    assert "simulated from" in capsys.readouterr().out


def test_a_plan_is_frozen_once(capsys, tmp_path):
    out = f"out={tmp_path}/out"
    told = planned(capsys, out, "--freeze", "--margin", "2")["frozen"]
    made = json.loads((tmp_path / "out" / "frozen.json").read_text())
    assert made["sha256"] == told["sha256"]
    keys = {k for k, names in plan_grid([*STUDY, out]).design.runs.items()
            if not names[0].cell.is_base}  # fmt: skip
    assert set(made["runs"]) == keys
    assert main(["plan", *STUDY, out, "--freeze", "--margin", "2"]) == 2
    assert "stays as it is" in capsys.readouterr().err


def test_a_fraction_is_a_study_of_its_own(capsys, tmp_path):
    out = f"out={tmp_path}/out"
    found = planned(capsys, out, "--fraction=12")["fraction"]
    assert len(found["runs"]) == 12
    again = plan_grid(["study=quick_fraction", out], config_dirs=[f"{tmp_path}/out/fraction"])
    whole = plan_grid([*STUDY, out]).design.runs
    kept = set(again.design.runs)
    assert set(found["runs"]) <= kept <= set(whole)
    controls = {k for k in kept - set(found["runs"]) if not whole[k][0].cell.is_base}
    for key in controls:  # what is no part of the model's rows stays whole
        cell = whole[key][0].cell
        assert cell.sham != "a" or cell.masking.name == "placebo" or cell.dataset.shuffle_prompts


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--power"], "--pilot"),
        (["--effect=2"], "belongs to plan --power"),
        (["--power", "--pilot=nowhere.csv"], "no such file or folder"),
        (["--power", "--pilot=nowhere.csv", "--effect=big"], "--effect=big: must be a number"),
        (["--freeze"], "--margin"),
        (["--margin=2"], "belongs to plan --freeze"),
        (["--freeze", "--margin=2", "--spending=pocock"], "belongs to plan --looks"),
        (["--freeze", "--margin=much"], "must be a number"),
        (["--fraction=half"], "must be a whole number"),
        (["--fraction=3"], "coefficients and the grid"),
    ],
)
def test_bad_requests_are_one_line(capsys, tmp_path, words, said):
    assert main(["plan", *STUDY, f"out={tmp_path}/out", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
