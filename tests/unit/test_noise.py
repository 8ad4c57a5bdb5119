"""Where the noise lies: REML in the balanced case, truth put in, standard errors by simulation."""

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.mixed import fit_mixed
from analysis.questions.noise import figure as figures
from analysis.questions.noise.estimate import Noise, noise, noise_table, plan_table
from analysis.table.factors import cell_names
from analysis.table.items import Items

SD = {"seed": 2.0, "run": 1.5, "item": 20.0, "cell_item": 10.0, "rest": 30.0}


def draw(rng, *, cells=4, seeds=5, items=300, sd=SD):
    """Scores of a crossed design with these standard deviations."""
    shared = np.tile(rng.normal(0, sd["seed"], seeds), cells)[:, None]
    own = rng.normal(0, sd["run"], (cells * seeds, 1))
    cell_item = np.repeat(rng.normal(0, sd["cell_item"], (cells, items)), seeds, axis=0)
    rest = rng.normal(0, sd["rest"], (cells * seeds, items))
    score = 50 + shared + own + rng.normal(0, sd["item"], items) + cell_item + rest
    runs = pd.DataFrame({"run": [f"r{i}" for i in range(cells * seeds)]})
    runs["plw"] = np.repeat(np.arange(cells) / 10, seeds)
    runs["seed"] = np.tile(np.arange(seeds), cells)
    table = pd.DataFrame({"task": "t", "doc_id": np.arange(items), "binary": False})
    return Items(score.astype(np.float32), runs, table)


def test_in_the_balanced_case_it_is_reml():
    items = draw(np.random.default_rng(0), cells=3, seeds=4, items=40)
    found = noise(items)
    long = items.long().astype({"score": float})
    long["cell"] = long["run"].astype(str).map(items.runs.set_index("run")["plw"]).astype(str)
    fit = fit_mixed(long, "score ~ cell + (1 | run) + (1 | item) + (1 | cell:item)")
    sd = {group: float(effect.sd.iloc[0]) for group, effect in fit.random.items()}
    assert not fit.singular
    assert np.sqrt(found.rest) == pytest.approx(fit.sigma, rel=1e-3)
    assert np.sqrt(found.run + found.seed) == pytest.approx(sd["run"], rel=1e-3)
    assert np.sqrt(found.item) == pytest.approx(sd["item"], rel=1e-3)
    assert np.sqrt(found.cell_item) == pytest.approx(sd["cell:item"], rel=1e-3)


def test_what_was_put_in_is_found_on_average():
    rng = np.random.default_rng(1)
    drawn = [noise(draw(rng, cells=6, seeds=8, items=200)) for _ in range(60)]
    for name, sd in SD.items():
        variances = np.array([getattr(d, name) for d in drawn])
        error = variances.std(ddof=1) / np.sqrt(len(drawn))
        assert variances.mean() == pytest.approx(sd**2, abs=3 * error + 0.02 * sd**2), name


@pytest.mark.parametrize(("fixed", "paired"), [(False, True), (True, True), (False, False)])
def test_the_standard_error_is_that_of_simulated_differences(fixed, paired):
    truth = Noise(**{k: v**2 for k, v in SD.items()}, cells=2, runs=8, items=50)
    rng, gaps = np.random.default_rng(2), []
    for _ in range(3000):
        sd = SD | ({"cell_item": 0.0} if fixed else {})
        a = draw(rng, cells=2, seeds=4, items=50, sd=sd).scores_RI.astype(float)
        b = a if paired else draw(rng, cells=2, seeds=4, items=50, sd=sd).scores_RI.astype(float)
        gaps.append(a[:4].mean() - b[4:].mean())
    simulated = np.std(gaps)
    found = truth.se(4, 50, paired=paired, fixed=fixed)
    assert found == pytest.approx(simulated, rel=0.04)


def test_items_that_some_run_lacks_are_left_out():
    items = draw(np.random.default_rng(4))
    items.scores_RI[3, 10:] = np.nan
    assert noise(items).items == 10
    items.scores_RI[4, :9] = np.nan
    with pytest.raises(AnalysisError, match="fewer than two items"):
        noise(items)


def test_one_run_a_cell_tells_nothing_of_runs():
    items = draw(np.random.default_rng(5), seeds=1)
    with pytest.raises(AnalysisError, match="no cell has two runs"):
        noise(items)
    assert not len(noise_table(items))


def test_the_table_has_a_row_per_stratum_and_task():
    items = draw(np.random.default_rng(6))
    items.runs["dataset"], items.runs["model"] = "d", "m"
    table = noise_table(items)
    assert table["stratum"].tolist() == ["d m"]
    assert (table["se_unpaired"] > table["se"]).all()
    assert (table["se_fixed"] < table["se"]).all()


def test_full_tuning_is_one_cell_at_any_rank():
    runs = pd.DataFrame(
        {"run": list("abc"), "adapter": ["full", "full", "lora"], "rank": [2, 8, 8]}
    )
    assert cell_names(runs).tolist() == ["full", "full", "lora 8"]


def test_the_plan_figure_has_a_panel_per_task_and_a_line_per_number_of_seeds():
    found = Noise(**{k: v**2 for k, v in SD.items()}, cells=2, runs=8, items=50)
    plan = plan_table(found).assign(task="t", here=False)
    here = pd.DataFrame([{"seeds": 4, "items": 50, "se": found.se(4, 50), "task": "t",
                          "here": True}])  # fmt: skip
    figure = figures.plan(pd.concat([plan, here], ignore_index=True))
    assert len(figure.axes) == 1
    assert len(figure.axes[0].lines) == plan["seeds"].nunique() + 1


def test_the_plan_figure_of_cells_that_never_differ_has_no_logarithm_of_zero():
    table = pd.DataFrame({"task": ["t", "t", "u", "u"], "seeds": "2", "items": [10, 20] * 2,
                          "se": [0.0, 0.0, 1.0, 0.5], "here": [False, True] * 2})  # fmt: skip
    scales = [axis.get_yscale() for axis in figures.plan(table).axes]
    assert scales[:2] == ["linear", "log"]
