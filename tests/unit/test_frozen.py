"""A frozen plan: what it says, that it cannot be changed unseen, and what a report makes of it."""

import json

import pytest

from analysis.design.frozen import FILE, freeze, held, read_frozen
from analysis.errors import AnalysisError
from analysis.report.build import build
from analysis.study.default_model import default_formula
from analysis.study.frame import from_results
from tests.fake_results import fake_results

RESULTS = fake_results(plws=(0.0, 0.1, 1.0), controls=False)


@pytest.fixture
def plan():
    return freeze(RESULTS, study="quick", margin=2.0)


def test_the_plan_is_that_of_the_results_to_come(plan):
    assert plan.formula == default_formula(from_results(RESULTS))[0]
    assert plan.seeds == (0, 1)
    trained = RESULTS[RESULTS["adapter"] != "none"]
    assert set(plan.runs) == set(trained["train_key"])


def test_it_comes_back_from_its_file_and_is_never_replaced(plan, tmp_path):
    plan.write(tmp_path / "new" / FILE)
    assert read_frozen(tmp_path / "new" / FILE) == plan
    with pytest.raises(AnalysisError, match="stays as it is"):
        plan.write(tmp_path / "new" / FILE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"margin": 5.0}, "changed after it was frozen"),
        ({"formula": "score ~ 1"}, "changed after it was frozen"),
        ({"sha256": "0"}, "changed after it was frozen"),
        ({"color": "red"}, "not an analysis plan"),
    ],
)
def test_a_change_is_seen(plan, tmp_path, change, said):
    file = tmp_path / FILE
    plan.write(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(AnalysisError, match=said):
        read_frozen(file)


def test_deviations_are_named(plan):
    kept = held(plan, formula=plan.formula.replace(" ", ""), runs=plan.runs, finished={})
    assert kept.confirmatory
    assert kept.words == []
    first, *rest = plan.runs
    found = held(
        plan, formula="score ~ wp", runs=[*rest, "extra"], finished={rest[0]: plan.written - 1}
    )
    assert not found.confirmatory
    assert (found.missing, found.added, found.late) == ((first,), ("extra",), 1)
    assert len(found.words) == 4


@pytest.mark.parametrize("broken", [False, True])
def test_the_report_says_what_is_confirmatory(plan, tmp_path, broken):
    RESULTS.to_parquet(tmp_path / "results.parquet")
    plan.write(tmp_path / FILE)
    if broken:
        text = (tmp_path / FILE).read_text().replace('"margin": 2.0', '"margin": 1.0')
        (tmp_path / FILE).write_text(text)
    page = build(tmp_path, tmp_path / "report").read_text()
    assert ("tests are confirmatory" in page) is not broken
    assert ("changed after it was frozen" in page) is broken


def test_a_margin_is_positive():
    with pytest.raises(AnalysisError, match="margin="):
        freeze(RESULTS, study="quick", margin=0.0)
