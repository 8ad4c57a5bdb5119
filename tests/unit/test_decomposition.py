"""The parts of a weight's effect: cells with known causes, with and without the held cell."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.questions.decomposition.estimate import (
    DOWN,
    HELD,
    NO_NORMS,
    PROMPT,
    STEP,
    TOTAL,
    decomposed,
    decomposition_table,
    decompositions,
)
from analysis.questions.decomposition.scale_cells import Cell, scale_means
from analysis.table.frame import from_results

N_C, N_P, ANGLE = (
    20.0,
    60.0,
    0.8,
)  # tokens, and how long the prompt's gradient is to the completion's
BY_SCALE, BY_PROMPT = 3.0, 5.0  # points per log scale, points for all of the prompt
START = Cell("", 0.0, "weight")


def outcomes(plw, scale):
    """Score, log norm and log share of a cell: |a G_c + b G_p| with orthogonal gradients."""
    divisor = {"weight": N_C + plw * N_P, "held": N_C, "tokens": N_C + N_P}[scale]
    a, b = 1 / divisor, plw / divisor
    completion, prompt = a * N_C, b * N_P * ANGLE
    log_norm = np.log(completion + prompt)  # gradients that point alike: norm x share = a
    score = 50 + BY_SCALE * np.log(a * N_C) + BY_PROMPT * plw
    return score, log_norm, np.log(completion / (completion + prompt))


def cells(names, *, seed=0, noise=1.0, seeds=5, small=0.02):
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(seeds):
        shift = rng.normal(0, 3)
        for cell in names:
            score, norm, share = outcomes(cell.plw, cell.scale)
            e = rng.standard_normal(3) * [noise, small * noise, small * noise]
            rows.append(
                {
                    "cell": cell, "arm": "full", "block": f"d:{s}", "score": score + shift + e[0],
                    "log_norm": norm + e[1], "log_share": share + e[2],
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def truth(plw):
    (s1, x1, h1), (s0, x0, h0) = outcomes(plw, "weight"), outcomes(0.0, "weight")
    return {
        TOTAL: s1 - s0, STEP: BY_SCALE * (x1 - x0), DOWN: BY_SCALE * (h1 - h0),
        PROMPT: BY_PROMPT * plw,
    }  # fmt: skip


WEIGHTED = Cell("none", 0.5, "weight")
ON_THE_WAY = [START, WEIGHTED, Cell("none", 0.5, "held")]
ELSEWHERE = [START, WEIGHTED, Cell("", 0.0, "tokens")]


def test_without_noise_the_parts_are_the_causes():
    (found,) = decomposed(scale_means(cells(ON_THE_WAY, noise=1e-9)), {})
    assert found.identified_by == HELD
    for name, value in truth(0.5).items():
        assert found.parts[name].estimate == pytest.approx(value, abs=1e-5)


def test_the_parts_add_up():
    (found,) = decomposed(scale_means(cells(ON_THE_WAY, noise=2.0)), {})
    parts = sum(found.parts[name].estimate for name in (STEP, DOWN, PROMPT))
    assert parts == pytest.approx(found.parts[TOTAL].estimate)


def test_the_parts_are_covered_as_often_as_is_claimed():
    wanted, covered = truth(0.5), dict.fromkeys((TOTAL, STEP, DOWN, PROMPT), 0)
    for i in range(200):
        (found,) = decomposed(scale_means(cells(ON_THE_WAY, seed=i)), {})
        for name in covered:
            part = found.parts[name]
            covered[name] += part.low <= wanted[name] <= part.high
    for name, count in covered.items():
        assert stats.binomtest(count, 200, 0.95).pvalue > 0.001, name


def test_the_prompt_part_is_a_paired_difference_of_two_cells():
    runs = cells(ON_THE_WAY, noise=2.0, seeds=6)
    wide = runs.assign(scale=[f"{c.plw} {c.scale}" for c in runs["cell"]]).pivot(
        index="block", columns="scale", values="score"
    )
    gaps = wide["0.5 held"] - wide["0.0 weight"]
    (found,) = decomposed(scale_means(runs), {})
    assert found.parts[PROMPT].estimate == pytest.approx(gaps.mean())
    rest = wide.sub(wide.mean(axis=1), axis=0)
    rest = rest - rest.mean()
    se = np.sqrt(2 * float((rest**2).to_numpy().sum()) / 10 / 6)
    assert found.parts[PROMPT].se == pytest.approx(se, rel=1e-4)
    assert found.parts[PROMPT].df == 10


@pytest.mark.parametrize("names", [[START, WEIGHTED], ELSEWHERE])
def test_without_the_held_cell_it_says_what_to_run(names):
    (found,) = decomposed(scale_means(cells(names)), {"dataset": "d"})
    assert found.parts[TOTAL] is not None
    assert found.parts[PROMPT] is None
    assert "add loss.normaliser=completion at plw=0.5" in found.identified_by


def test_without_norms_the_prompt_part_remains():
    runs = cells(ON_THE_WAY).assign(log_norm=np.nan)
    (found,) = decomposed(scale_means(runs), {})
    assert found.identified_by == NO_NORMS
    assert found.parts[PROMPT] is not None
    assert found.parts[STEP] is None


def results(rows):
    """A results table of our own form from (masking, plw, normaliser, seed)."""
    rng = np.random.default_rng(4)
    table = []
    for i, (masking, plw, normaliser, seed) in enumerate(rows):
        scale = {"completion": "held", "weight": "weight", "tokens": "tokens"}[normaliser]
        score, norm, share = outcomes(plw, scale)
        table.append(
            {
                "train_key": f"r{i}", "task": "t", "task_type": "mc", "side": "target",
                "metric": "acc", "value": (score + rng.normal(0, 0.2)) / 100, "masking": masking,
                "plw": plw, "effective_plw": 0.0 if masking == "instruction" else plw,
                "normaliser": normaliser, "adapter": "full", "rank": 1, "dataset": "d",
                "dataset_type": "short", "model": "m", "seed": seed, "completion_weight": 1.0,
                "grad_norm_mean": np.exp(norm), "completion_grad_share": np.exp(share),
            }
        )  # fmt: skip
    return from_results(pd.DataFrame(table))


def test_a_results_table_goes_all_the_way():
    levels = [("instruction", 0.0, "weight"), ("none", 0.1, "weight"), ("none", 1.0, "weight")]
    held = [("none", 0.1, "completion"), ("none", 1.0, "completion")]
    frame = results([(*c, s) for c in levels + held for s in range(4)])
    found = decompositions(frame)
    assert [one.plw for one in found] == [0.1, 1.0]
    for one in found:
        for name, value in truth(one.plw).items():
            assert one.parts[name].estimate == pytest.approx(value, abs=0.8)
    table = decomposition_table(found)
    assert len(table) == 8
    assert set(table["identified_by"]) == {"the cells themselves", HELD}


def test_cells_that_train_alike_are_one():
    """At weight 0 the completion's normaliser is the weights', at weight 1 so is that of tokens."""
    rows = [
        ("instruction", 0.0, "completion"),
        ("none", 1.0, "tokens"),
        ("none", 1.0, "completion"),
    ]
    found = decompositions(results([(*c, s) for c in rows for s in range(4)]))
    assert [one.identified_by for one in found] == [HELD]
