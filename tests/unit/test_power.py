"""Power against closed forms: paired t tests of runs and of cells, a null effect, items."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.errors import AnalysisError
from analysis.planning.power import (
    Components,
    Noise,
    components,
    power,
    published,
    replicated,
)
from analysis.planning.replicates import wit_spread
from notebooks.refits import wit
from tests.fake_results import Truth, fake_results

FLAT = Truth(dose=dict.fromkeys(Truth().dose, (0.0, 0.0)), residual_sd=2.0, run_sd=0.0, cell_sd=3.0)
ITEMS = 500


def of_runs(run, *, cell=0.0, item=0.0, items=float("nan")):
    """Noise that is the same in every group of tasks, of the score on one task."""
    return Components({("data", "any"): Noise(cell, run, item, tasks=1.0)}, items, "made up")


def pairs(*adapters):
    """Runs of each adapter at PLW 0 and PLW 1, with one score each."""
    rows = [
        {
            "train_key": f"{adapter}{plw}", "task": "t", "metric": "acc", "task_type": "mc",
            "value": 0.5, "masking": "none", "plw": plw, "effective_plw": plw, "adapter": adapter,
            "seed": 0,
        }
        for adapter in adapters or ("full",)
        for plw in (0.0, 1.0)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def t_power(shift, df):
    bound = stats.t.isf(0.025, df)
    return stats.nct.sf(bound, df, shift) + stats.nct.cdf(-bound, df, shift)


def within(draws, known):
    return pytest.approx(known, abs=3.5 * np.sqrt(known * (1 - known) / draws))


@pytest.mark.parametrize(("seeds", "tasks"), [(3, 1), (6, 1), (3, 4)])
def test_two_cells_are_a_paired_t_test(seeds, tasks):
    """The noise of a run's score is that of a mean over its tasks."""
    draws = 600
    planned = pd.concat([pairs().assign(task=f"t{i}") for i in range(tasks)])
    found = power(planned, of_runs(2.0), effect=3.0, seeds=[seeds], draws=draws)
    (line,) = found.to_dict("records")
    assert line["shape"] == "line"
    assert line["runs"] == 2 * seeds
    shift = 3.0 / (2.0 / np.sqrt(tasks) * np.sqrt(2 / seeds))
    assert line["power"] == within(draws, t_power(shift, seeds - 1))


@pytest.mark.parametrize("effect", [4.0, 1e-9])
def test_where_cells_scatter_more_seeds_do_not_help_and_arms_are_the_units(effect):
    """Runs of a cell hardly differ: the paired t test of the four arms' differences."""
    draws, arms = 200, ("full", "lora", "mora", "dora")
    noise = of_runs(0.05, cell=2.0)
    found = power(pairs(*arms), noise, effect=effect, seeds=[2, 4], draws=draws)
    known = t_power(effect / (2.0 * np.sqrt(2 / len(arms))), len(arms) - 1)
    assert found["power"].tolist() == [within(draws, known)] * 2


def test_one_seed_sees_nothing_more_see_more_and_no_effect_is_seen_at_the_rate_of_chance():
    planned = fake_results(plws=(0.0, 0.1, 1.0), controls=False)
    tasks = ["micro_arithmetic", "micro_translate"]
    planned = planned[(planned["dataset"] != "micro") & planned["task"].isin(tasks)]
    noise = of_runs(3.0, cell=1.0)
    found = power(planned, noise, effect=4.0, seeds=[1, 2, 4], draws=20)
    means = found.groupby("seeds")["power"].mean()
    assert means[1] == 0
    assert means[4] > means[2] > 0.1
    none = power(planned, noise, effect=1e-9, seeds=[2], draws=50)["power"]
    assert 0.01 < none.mean() < 0.10


def test_components_come_back_from_a_pilot():
    pilot = fake_results(seed=3, truth=FLAT, seeds=3, controls=False)
    found = components(pilot)
    for group, tasks in (("mc target", 1), ("mc source", 2)):  # of independent tasks
        noise = found.panels["micro", group]
        assert noise.run == pytest.approx(2.0 / np.sqrt(tasks), rel=0.2)
        assert noise.cell == pytest.approx(3.0 / np.sqrt(tasks), rel=0.3)
        assert noise.tasks == tasks
    own = pilot[(pilot["task"] == "micro_arithmetic") & (pilot["dataset"] == "micro")]
    own = own[~own["alias"]]
    share = own.loc[own["adapter"] != "none", "value"]
    item = 100 * np.sqrt((share * (1 - share)).mean() / ITEMS)
    assert found.panels["micro", "mc target"].item == pytest.approx(item)
    assert found.items == ITEMS


def test_a_mean_over_other_tasks_has_the_noise_of_independent_ones():
    one = Noise(cell=1.5, run=2.0, item=1.0, tasks=4.0).of_mean(1.0)
    assert one == Noise(cell=1.5, run=4.0, item=2.0, tasks=1.0)


def test_a_panel_without_a_pilot_has_the_mean_variance_of_its_group_or_else_of_all():
    known = {("x", "a"): Noise(1.0, 2.0, 0.0, 1.0), ("y", "a"): Noise(1.0, 4.0, 0.0, 1.0),
             ("x", "b"): Noise(3.0, 4.0, 0.0, 4.0)}  # fmt: skip
    found = Components(known, 9.0, "")
    assert found.of("x", "a") is known["x", "a"]
    assert found.of("z", "a").run == pytest.approx(np.sqrt(10))
    other = found.of("z", "c")
    assert (other.cell, other.run) == pytest.approx((np.sqrt(11 / 3), np.sqrt(12)))
    assert other.tasks == 2


def test_items_shrink_their_own_part_alone():
    noise = of_runs(2.0, cell=1.0, item=1.0, items=ITEMS)
    assert noise.with_items(None) is noise
    for items, run in ((2000, np.sqrt(3 + 1 / 4)), (125, np.sqrt(3 + 4))):
        found = noise.with_items(items).of("data", "any")
        assert found.run == pytest.approx(run)
        assert found.cell == 1.0
    more = of_runs(2.0, item=5.0, items=ITEMS).with_items(2000)  # a tenth is not theirs
    assert more.of("data", "any").run == pytest.approx(np.sqrt(0.4 + 3.6 / 4))
    with pytest.raises(AnalysisError, match="items="):
        of_runs(2.0, item=1.0).with_items(100)


def test_cells_are_copied_and_the_base_is_not():
    planned = fake_results(seeds=2, controls=False)
    found = replicated(planned, 5)
    assert found["seed"].nunique() == 5
    base = planned["adapter"] == "none"
    assert (found["adapter"] == "none").sum() == base.sum()
    trained = planned[~base]
    assert found["train_key"].nunique() == base.groupby(planned["train_key"]).any().sum() + 5 * (
        trained[trained["seed"] == 0]["train_key"].nunique()
    )


@pytest.mark.parametrize("asked", [{"effect": 0.0}, {"seeds": []}, {"seeds": [0]}, {"draws": 1}])
def test_requests_out_of_range(asked):
    with pytest.raises(AnalysisError, match="must be positive"):
        power(pairs(), of_runs(1.0), **{"effect": 1.0, **asked})


def test_a_grid_without_a_weight_has_nothing_to_see():
    flat = pairs().assign(effective_plw=0.0, plw=0.0)
    with pytest.raises(AnalysisError, match="does not vary"):
        power(flat, of_runs(1.0), effect=1.0, seeds=[2], draws=2)


def test_the_published_noise_is_that_of_the_refitted_table():
    found = published()
    noise = found.of("micro", "mc target")
    assert noise.run == pytest.approx(1.11, abs=0.005)  # docs/published.md: of five benchmarks
    assert noise.of_mean(1).run == pytest.approx(1.11 * np.sqrt(5), abs=0.01)
    assert noise.cell == 0
    assert "1.11" in found.source
    cells = wit.cells()  # the notebook's way to the same table
    assert wit_spread() == wit.noise(cells)
    assert wit_spread().df == 525 - 15 * 21  # 15 panels, 21 ratios
