"""The surface of an effect over two numbers, against ordinary least squares and known truths."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from analysis.curve.surface import surface
from analysis.errors import AnalysisError
from analysis.table.gaps import gaps

RG, ROWS = (0.08, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0), (125, 250, 500, 1000)


def made(truth, rng, *, cell_sd=0.0, noise=1.0, seeds=3, models=("a", "b"), rg=RG, rows=ROWS):
    """Return pairs whose gap is `truth(log2 rg, log2 rows)`, plus scatter of cells and of seeds."""
    found = []
    for ratio in rg:
        for count in rows:
            for number, model in enumerate(models):
                own = truth(np.log2(ratio), np.log2(count)) + rng.normal(0, cell_sd) + number
                found += [
                    {"rg": ratio, "train_rows": count, "model": model, "gap": own + noise * z}
                    for z in rng.normal(size=seeds)
                ]
    return pd.DataFrame(found)


def test_with_as_many_pairs_everywhere_it_is_least_squares():
    pairs = made(lambda x, s: 1 - x + 0.3 * x * s, np.random.default_rng(4), models=("a",))
    found = surface(pairs, "rg", "train_rows")
    x, s = (np.log2(pairs[n]) - found.middle[i] for i, n in enumerate(("rg", "train_rows")))
    known = smf.ols("gap ~ x + I(x**2) + s + I(s**2) + x:s", pairs.assign(x=x, s=s)).fit()
    places = [(0.1, 200.0), (3.0, 900.0)]
    there = pd.DataFrame(
        {"x": [np.log2(p[0]) - found.middle[0] for p in places],
         "s": [np.log2(p[1]) - found.middle[1] for p in places]}
    )  # fmt: skip
    assert [one.estimate for one in found.at(places)] == pytest.approx(known.predict(there))
    ends = np.array([[np.log2(8.0), np.log2(0.08)], [np.log2(1000), np.log2(125)]])
    ends -= np.array(found.middle)[:, None]
    for number, name in enumerate("xs"):
        one, two = known.params[name], known.params[f"I({name} ** 2)"]
        change = one * -np.diff(ends[number])[0] + two * -np.diff(ends[number] ** 2)[0]
        assert found.change(number).estimate == pytest.approx(change)


def test_the_surface_is_that_of_the_mean_base_model():
    pairs = made(lambda x, s: 2 + x, np.random.default_rng(1), noise=1e-6, models=("a", "b", "c"))
    found = surface(pairs, "rg", "train_rows")
    assert found.at([(1.0, 500.0)])[0].estimate == pytest.approx(2 + 1, abs=1e-4)


def test_intervals_for_all_places_contain_those_for_each():
    pairs = made(lambda x, s: x, np.random.default_rng(2), cell_sd=1.0)
    table = surface(pairs, "rg", "train_rows").together([(r, n) for r in RG for n in ROWS])
    assert (table["all_low"] < table["low"]).all()
    assert (table["high"] < table["all_high"]).all()


def test_terms_follow_the_places():
    two = made(lambda x, s: x, np.random.default_rng(3), rg=(1.0, 2.0), models=("a",))
    names = list(surface(two, "rg", "train_rows").fit.fixef.index)
    assert sorted(names) == sorted(["Intercept", "x", "s", "I(s ** 2)", "x:s"])
    one = made(lambda x, s: x, np.random.default_rng(3), rg=(1.0,), models=("a",))
    flat = surface(one, "rg", "train_rows")
    assert flat.changes() is not None
    line = two[two["rg"] == two["train_rows"] / 125]  # two places, each of other values
    with pytest.raises(AnalysisError, match="too few"):
        surface(line, "rg", "train_rows")
    with pytest.raises(AnalysisError, match="above 0"):
        surface(two.assign(rg=0.0), "rg", "train_rows")


@pytest.mark.slow
@pytest.mark.parametrize("cell_sd", [0.0, 1.0])
def test_coverage_and_false_positives(cell_sd):
    """Over simulated studies intervals hold the truth as often as they say."""
    rng, draws, held, wrong, together = np.random.default_rng(9), 150, 0, 0, 0
    places = [(r, n) for r in RG for n in ROWS]
    for _ in range(draws):
        pairs = made(lambda x, s: 1 - 0.5 * x, rng, cell_sd=cell_sd)
        found = surface(pairs, "rg", "train_rows")
        change = found.change(0)
        held += change.low <= -0.5 * np.log2(8 / 0.08) <= change.high
        wrong += found.change(1).p < 0.05
        table = found.together(places)
        truth = np.array([1 - 0.5 * np.log2(r) + 0.5 for r, _ in places])
        together += bool(((table["all_low"] <= truth) & (truth <= table["all_high"])).all())
    for count, share in ((held, 0.95), (draws - wrong, 0.95), (together, 0.95)):
        assert abs(count / draws - share) < 3.5 * np.sqrt(share * (1 - share) / draws)


def test_pairs_share_all_but_the_dose():
    runs = pd.DataFrame(
        {
            "run": list("abcdef"),
            "masking": ["instruction", "none", "instruction", "none", "none", "instruction"],
            "plw": [0.0, 1.0, 0.0, 1.0, 1.0, 0.0],
            "dataset": ["p", "p", "q", "q", "p", "q"],
            "seed": [0, 0, 0, 0, 1, 1],
            "adapter": "full",
            "model": "m",
            "score": [1.0, 4.0, 10.0, 11.0, 100.0, 5.0],
        }
    )
    found = gaps(runs, runs["plw"] == 1, runs["plw"] == 0)
    assert found[["run", "gap"]].to_numpy().tolist() == [["b", 3.0], ["d", 1.0]]
