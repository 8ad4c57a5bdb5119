"""A frozen plan: what it says, that it cannot be changed unseen, and what a report makes of it."""

import json

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as t_distribution

from ablate.cli import main
from analysis.errors import AnalysisError
from analysis.planning import section as frozen_plan
from analysis.planning.frozen import FILE, freeze, held, read_frozen
from analysis.planning.sequential import boundaries
from analysis.questions.plw.estimate import dose_table
from analysis.regression.default_model import default_formula
from analysis.regression.study import fitted
from analysis.report.build import build
from analysis.report.page import Listing, Sheet
from analysis.table.frame import from_results
from analysis.table.run_panels import CURVE
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


def studied(results, plan):
    """The study that a report starts from, with this plan beside it."""
    planned = frozen_plan.formula_of(plan)
    found = fitted(results, from_results(results), plan=plan, planned=planned)
    return found, frozen_plan.section(found)


def text_of(section):
    lines = [i for b in section.blocks if isinstance(b, Listing) for i in b.entries]
    return " ".join(f"{i.tag} {i.text}" for i in lines)


def table_of(section):
    sheets = [b.table.frame for b in section.blocks if isinstance(b, Sheet)]
    return sheets[0] if sheets else None


@pytest.mark.slow
def test_the_report_shows_the_plan_beside_its_results(plan, tmp_path):
    RESULTS.to_parquet(tmp_path / "results.parquet")
    plan.write(tmp_path / FILE)
    page = build(tmp_path, tmp_path / "report").read_text()
    assert "its tests are confirmatory" in page
    assert "not frozen before the data" not in page
    assert (tmp_path / "report" / "tables" / "frozen_tests.csv").exists()


def test_a_plan_that_was_changed_confirms_nothing(plan, tmp_path):
    plan.write(tmp_path / FILE)
    text = (tmp_path / FILE).read_text().replace('"margin": 2.0', '"margin": 1.0')
    (tmp_path / FILE).write_text(text)
    _, section = studied(RESULTS, tmp_path / FILE)
    assert "changed after it was frozen" in text_of(section)
    assert table_of(section) is None


def test_the_frozen_formula_is_what_is_fitted(plan, tmp_path):
    """Data that came out narrower would be given another model, had none been frozen."""
    fewer = RESULTS[~RESULTS["adapter"].eq("mora") & ~RESULTS["plw"].eq(0.1)]
    assert default_formula(from_results(fewer))[0] != plan.formula
    plan.write(tmp_path / FILE)
    found, section = studied(fewer, tmp_path / FILE)
    assert found.formula == plan.formula
    assert found.reasons == ("The formula is the one that was frozen before the data.",)
    assert "planned and not there" in text_of(section)


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(AnalysisError, match=r"frozen=.*no such file"):
        build(RESULTS, tmp_path, frozen=tmp_path / "none.json")


def test_a_file_named_as_a_plan_must_be_one(plan, tmp_path, capsys):
    """One that lies beside the table may be broken: the page says so."""
    RESULTS.to_parquet(tmp_path / "results.parquet")
    plan.write(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    for broken, said in [
        ("{}", "not an analysis plan"),
        ("3", "not an analysis plan"),
        (text.replace('"margin": 2.0', '"margin": 1.0'), "was changed after it was frozen"),
    ]:
        (tmp_path / "plan.json").write_text(broken)
        assert main(["report", str(tmp_path), "--frozen", str(tmp_path / "plan.json")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


THREE = fake_results(plws=(0.0, 0.1, 1.0), seeds=3, controls=False)


@pytest.mark.parametrize(
    ("seeds", "said"), [(1, "Look 1 of 2"), (2, "no test is due"), (3, "Look 2 of 2")]
)
def test_a_report_knows_its_look(tmp_path, seeds, said):
    plan = freeze(THREE, study="quick", margin=2.0, looks=(1, 3))
    plan.write(tmp_path / FILE)
    _, section = studied(THREE[THREE["seed"] < seeds], tmp_path / FILE)
    assert said in text_of(section)
    assert "planned and not there" not in text_of(section)  # later looks' seeds are to come
    assert (table_of(section) is not None) is (seeds != 2)


def test_the_interval_of_a_look_is_that_of_its_boundary(tmp_path):
    plan = freeze(THREE, study="quick", margin=2.0, looks=(2, 3), spending="pocock")
    plan.write(tmp_path / FILE)
    study, section = studied(THREE[THREE["seed"] < 2], tmp_path / FILE)
    both = table_of(section).merge(dose_table(study.curves), on=list(CURVE))
    assert len(both) == len(plan.tests) > 0
    tail = norm.sf(boundaries([2 / 3], spending="pocock")[0])
    half = t_distribution.isf(tail, both["df"]) * both["se"]
    np.testing.assert_allclose(both["high_x"] - both["effect_x"], half, rtol=1e-6)
    assert (both["p_x"] >= both["p_y"]).all()
    away = (both["low_x"] > 0) | (both["high_x"] < 0)
    assert away.eq(both["p_x"] < 0.05).all()  # the interval and the repeated p say the same


@pytest.mark.parametrize("looks", [(2,), (3, 2), (0, 3), (1, 1, 3), (1, 4)])
def test_looks_rise_to_all_seeds(looks):
    with pytest.raises(AnalysisError, match="looks="):
        freeze(THREE, study="quick", margin=2.0, looks=looks)


def test_a_margin_is_positive():
    with pytest.raises(AnalysisError, match="margin="):
        freeze(RESULTS, study="quick", margin=0.0)
