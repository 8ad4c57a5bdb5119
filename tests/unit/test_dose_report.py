"""The sections on the shape of the curve, the ranks, the parts of an effect and the front."""

import numpy as np
import pandas as pd
import pytest

from analysis.questions.decomposition import section as decomposition
from analysis.questions.plw import figure as figures
from analysis.questions.plw import rank_section, shape_section
from analysis.questions.tradeoff import section as front
from analysis.regression.study import fitted
from analysis.report.tables import html_table, latex
from analysis.table.frame import from_results

SIDES = (("t", "target"), ("s", "source"))


def table(*, datasets=(("a", 0.2), ("b", 1.0), ("c", 5.0)), seeds=3, base=True):
    """Full tuning and an adapter at three ranks over five weights, and cells that hold a part."""
    rng = np.random.default_rng(8)
    rows = []
    for dataset, rg in datasets:
        cells = [("none", w, "weight", a, r) for w in (0.0, 0.01, 0.1, 0.5, 1.0)
                 for a, r in (("full", 1), ("lora", 2), ("lora", 8), ("lora", 32))]  # fmt: skip
        cells += [("none", w, "completion", "full", 1) for w in (0.1, 1.0)]
        for cell in cells:
            for seed in range(seeds):
                rows += runs_of(dataset, rg, cell, seed, rng)
    if base:
        rows += [
            {"train_key": "base", "task": task, "side": side, "value": 0.5, "adapter": "none",
             "rank": 1, "masking": "none", "plw": 0.0, "effective_plw": 0.0, "seed": 0,
             "normaliser": "weight", "dataset": "a", "dataset_type": "short", "rg": 1.0}
            for task, side in SIDES
        ]  # fmt: skip
    return pd.DataFrame(rows).assign(
        task_type="mc", metric="acc", model="m", completion_weight=1.0, study="s"
    )


def runs_of(dataset, rg, cell, seed, rng):
    masking, plw, normaliser, adapter, rank = cell
    wp = plw**0.30103
    gain = 8 * wp - 7 * wp**2 + (0 if adapter == "full" else 0.3 * np.log2(rank)) * wp
    scale = 0.0 if normaliser == "completion" else -np.log(1 + 3 * plw)
    common = {
        "train_key": f"{dataset}{cell}{seed}", "adapter": adapter, "rank": rank, "plw": plw,
        "masking": masking, "effective_plw": plw, "seed": seed, "normaliser": normaliser,
        "dataset": dataset, "dataset_type": "short", "rg": rg,
        "grad_norm_mean": np.exp(scale + np.log(1 + 2 * plw) + 0.01 * rng.standard_normal()),
        "completion_grad_share": 1 / (1 + 2 * plw),
    }  # fmt: skip
    noise = 0.6 * rng.standard_normal(2)
    return [
        common | {"task": task, "side": side, "value": (60 + sign * gain + e + seed) / 100}
        for (task, side), sign, e in zip(SIDES, (1, -1), noise, strict=True)
    ]


@pytest.fixture(scope="module")
def study():
    raw = table()
    return fitted(raw, from_results(raw))


@pytest.fixture(scope="module")
def sections(study):
    modules = (shape_section, rank_section, decomposition, front)
    found = [module.section(study) for module in modules]
    return {section.key: section for section in found}


def test_every_section_is_there_and_every_table_can_be_shown(sections):
    for section in sections.values():
        for block in section.blocks:
            if block.kind == "table":
                assert html_table(block.table).startswith("<table>")
                assert r"\toprule" in latex(block.table)
                assert len(block.table.frame)
            if block.kind == "plate":
                block.figure.draw_without_rendering()
                assert block.caption


def names(section):
    return [b.table.name for b in section.blocks if b.kind == "table"]


def test_the_sections_hold_what_they_say(sections):
    assert names(sections["shape"]) == ["curve_shape"]
    assert names(sections["by-rank"]) == ["best_plw_by_rank", "curves_by_adapter"]
    assert names(sections["decomposition"]) == ["decomposition"]
    assert names(sections["trade-off"]) == [
        "learning_forgetting_arms", "learning_forgetting_cells",
    ]  # fmt: skip


def test_few_rg_have_no_curve_but_a_sentence(sections):
    told = [b.text for b in sections["shape"].blocks if b.kind == "text"]
    assert "A curve over Rg needs 7 distinct values of Rg; there are 3." in told


def test_what_a_table_lacks_leaves_its_section_out():
    raw = table(base=False)
    raw = raw[(raw["normaliser"] == "weight") & (raw["adapter"] == "full")]
    study = fitted(raw, from_results(raw))
    assert [m.section(study) for m in (rank_section, decomposition, front)] == [None] * 3
    assert shape_section.section(study) is not None


def test_a_line_of_the_best_weight_breaks_where_there_is_no_maximum():
    points = pd.DataFrame(
        {"panel": "p", "dataset": ["a", "b"], "rg": [0.1, 5.0], "best_wp": [0.5, 1.0],
         "low_wp": [0.4, np.nan], "high_wp": [0.6, np.nan],
         "optimum": ["interior optimum", "not identified"]}
    )  # fmt: skip
    curve = pd.DataFrame(
        {"panel": "p", "rg": [0.1, 1.0, 5.0], "best_wp": [0.5, 0.8, 1.0],
         "low_wp": [0.4, 0.5, np.nan], "high_wp": [0.6, 1.0, np.nan]}
    )  # fmt: skip
    figure = figures.rg(points, curve)
    line = next(ln for ln in figure.axes[0].lines if len(ln.get_xdata()) == 3)
    assert np.isnan(line.get_ydata()).tolist() == [False, False, True]
