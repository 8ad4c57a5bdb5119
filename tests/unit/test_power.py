"""Power against closed forms: the paired t test, a null effect, and what items buy."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.errors import AnalysisError
from analysis.planning.power import Components, components, enough, power, published, replicated
from analysis.planning.replicates import wit_spread
from notebooks.refits import wit
from tests.fake_results import Truth, fake_results

FLAT = Truth(dose={key: (0.0, 0.0) for key in Truth().dose}, residual_sd=2.0, run_sd=0.0)


def pairs():
    """Two runs a seed, at PLW 0 and PLW 1, with one score each."""
    rows = [
        {
            "train_key": f"k{plw}", "task": "t", "metric": "acc", "task_type": "mc", "value": 0.5,
            "masking": "none", "plw": plw, "effective_plw": plw, "adapter": "full", "seed": 0,
        }
        for plw in (0.0, 1.0)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("seeds", [3, 6])
def test_two_cells_are_a_paired_t_test(seeds):
    noise, effect, draws = Components(0.0, 2.0, 0.0, 0.0, "made up"), 3.0, 1000
    found = power(pairs(), noise, effect=effect, seeds=[seeds], draws=draws)
    shift = effect / (2.0 * np.sqrt(2 / seeds))
    bound = stats.t.isf(0.025, seeds - 1)
    known = stats.nct.sf(bound, seeds - 1, shift) + stats.nct.cdf(-bound, seeds - 1, shift)
    (line,) = found.to_dict("records")
    assert line["shape"] == "line"
    assert line["runs"] == 2 * seeds
    assert line["power"] == pytest.approx(known, abs=3.5 * np.sqrt(known * (1 - known) / draws))


def test_the_noise_of_a_run_counts_like_that_of_its_only_score():
    apart = Components(np.sqrt(3.0), 1.0, 0.0, 0.0, "made up")
    found = power(pairs(), apart, effect=3.0, seeds=[6], draws=600)["power"].iloc[0]
    whole = Components(0.0, 2.0, 0.0, 0.0, "made up")
    assert found == pytest.approx(
        power(pairs(), whole, effect=3.0, seeds=[6], draws=600)["power"].iloc[0], abs=0.08
    )


def test_more_seeds_see_more_and_nothing_is_seen_at_the_rate_of_chance():
    planned = fake_results(plws=(0.0, 0.1, 1.0), controls=False)
    noise = Components(0.5, 3.0, 0.0, 0.0, "made up")
    found = power(planned, noise, effect=4.0, seeds=[1, 3], draws=20)
    means = found.groupby("seeds")["power"].mean()
    assert means[3] > means[1]
    none = power(planned, noise, effect=1e-9, seeds=[2], draws=30)["power"]
    assert none.mean() < 0.12
    reached = enough(found, wanted=0.5)
    assert set(reached["seeds"].dropna()) <= {1, 3}


def test_components_come_back_from_a_pilot():
    found = components(fake_results(seed=3, truth=FLAT, seeds=3, controls=False))
    assert found.residual == pytest.approx(2.0, abs=0.25)
    assert found.run < 0.6


def test_items_shrink_their_own_part_alone():
    noise = Components(1.0, 2.0, 1.0, 500.0, "made up")
    assert noise.with_items(None) is noise
    assert noise.with_items(2000).residual == pytest.approx(np.sqrt(3 + 1 / 4))
    assert noise.with_items(125).residual == pytest.approx(np.sqrt(3 + 4))
    with pytest.raises(AnalysisError, match="items="):
        Components(1.0, 2.0, 1.0, float("nan"), "made up").with_items(100)


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
        power(pairs(), Components(0, 1, 0, 0, ""), **{"effect": 1.0, **asked})


def test_a_grid_without_a_weight_has_nothing_to_see():
    flat = pairs().assign(effective_plw=0.0, plw=0.0)
    with pytest.raises(AnalysisError, match="does not vary"):
        power(flat, Components(0, 1, 0, 0, ""), effect=1.0, seeds=[2], draws=2)


def test_the_published_noise_is_that_of_the_refitted_table():
    found = published()
    assert found.residual / np.sqrt(5) == pytest.approx(1.11, abs=0.005)  # docs/published.md
    assert "1.11" in found.source
    cells = wit.cells()  # the notebook's way to the same table
    assert wit_spread() == wit.noise(cells)
    assert wit_spread().df == 525 - 15 * 21  # 15 panels, 21 ratios
