"""A study of many arms: one line each, with what was put in."""

import numpy as np
import pandas as pd
import pytest

from analysis.questions.adapters.many_section import arm_tables, section
from analysis.regression.study import fitted
from analysis.report.build import build
from analysis.table.frame import from_results
from tests.fake_results import fake_results

ARMS = 14
STARTS = ("default", "pissa", "olora")
SECONDS, MEGABYTES = 4.0, 300.0


def table(arms=ARMS):
    """Copies of LoRA's runs under other names, each so many points higher on target tasks."""
    made = fake_results(seeds=3, controls=False)
    plain = (made["masking"] == "instruction") & (made["rank"] == 8) & (made["dataset"] == "micro")
    base = made[made["adapter"] == "none"]
    full = made[plain & (made["adapter"] == "full")]
    lora = made[plain & (made["adapter"] == "lora")]
    lora = lora.assign(train_seconds=SECONDS, peak_mb=MEGABYTES, budget="matched", alias=False)
    parts = [base, full.assign(train_seconds=6.0, peak_mb=400.0, alias=False), lora]
    for i in range(1, arms):
        share = np.where(lora["side"] == "target", i / 100, 0.0)
        unit = np.where(lora["metric"].isin(["bleu"]), 100.0, 1.0)
        keys = lora["train_key"].str.replace("lora", f"m{i}", regex=False)
        parts.append(
            lora.assign(
                adapter=f"m{i}", value=lora["value"] + share * unit, train_key=keys,
                train_seconds=SECONDS * (1 + i / 10), budget="unmatched" if i == 2 else "matched",
            )
        )  # fmt: skip
    for start in STARTS[1:]:
        keys = lora["train_key"] + start
        parts.append(lora.assign(init=start, train_key=keys))
    whole = pd.concat(parts, ignore_index=True)
    return whole.assign(init=whole.get("init", pd.Series(index=whole.index)).fillna("default"))


@pytest.fixture(scope="module")
def study():
    raw = table()
    return fitted(raw, from_results(raw))


def test_every_arm_is_a_line_and_gains_what_was_put_in(study):
    ((stratum, lines),) = arm_tables(study)
    assert stratum[0] == "micro"
    assert len(lines) == ARMS + len(STARTS)
    gains = lines.set_index("label")["learning"]
    assert gains.is_monotonic_decreasing
    for i in range(1, ARMS):
        assert gains[f"m{i}"] - gains["lora"] == pytest.approx(i, abs=1e-9)


def test_an_init_makes_an_arm_of_its_own(study):
    labels = set(arm_tables(study)[0][1]["label"])
    assert {"lora", "lora+pissa", "lora+olora", "full"} <= labels
    assert set(study.frame["method"].astype(str)) >= {"lora", "full", "none"}


def test_time_and_memory_are_in_units_of_lora(study):
    lines = arm_tables(study)[0][1].set_index("label")
    assert lines.loc["m5", "seconds"] == pytest.approx(1.5)
    assert lines.loc["full", "seconds"] == pytest.approx(6 / SECONDS)
    assert lines.loc["full", "peak_mb"] == pytest.approx(400 / MEGABYTES)
    assert lines.loc["m2", "budget"] == "unmatched"


def test_few_arms_keep_their_own_figures():
    raw = table(arms=3)
    raw = raw[raw["init"] == "default"]
    assert section(fitted(raw, from_results(raw))) is None


def test_the_page_has_both_figures_and_no_line_per_colour(study, tmp_path):
    build(table(), tmp_path / "report")
    figures = {p.stem for p in (tmp_path / "report" / "figures").glob("*.png")}
    assert {"arm_lines", "arm_costs", "arm_differences", "learning_forgetting"} <= figures
    assert "score_against_parameters" not in figures
    written = pd.read_csv(tmp_path / "report" / "tables" / "arm_lines.csv")
    assert len(written) == ARMS + len(STARTS)
