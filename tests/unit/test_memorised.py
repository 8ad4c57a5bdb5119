"""What was learnt by heart: the measure, the figure's section, factors without a column."""

import numpy as np
import pandas as pd
import pytest

from ablate.evaluate.measures import right_characters
from analysis.papers.mora import memorisation_figure as figures
from analysis.papers.mora import memorisation_section as memorised
from analysis.report import build, plain
from analysis.table.frame import from_results
from tests.fake_results import fake_results


@pytest.mark.parametrize(
    ("said", "truth", "share"),
    [
        ("a1-b2", "a1-b2", 1.0),
        (" a1-b2", "a1-b2", 1.0),
        ("a1-zz", "a1-b2", 0.5),  # the dash is given, four characters count
        ("1a-2b", "a1-b2", 0.0),
        ("a1", "a1-b2", 0.5),  # cut short
        ("a1-b2 and more", "a1-b2", 1.0),
        ("", "a1", 0.0),
        ("a", "--", 0.0),
    ],
)
def test_characters_in_their_place(said, truth, share):
    assert right_characters(said, truth) == share


def results(gap=30.0, seeds=5):
    """Runs of three methods at two budgets over three numbers of steps; MoRA `gap` above LoRA."""
    rng = np.random.default_rng(0)
    rows = []
    for adapter, rank, level in [
        ("full", 1, 60.0), ("lora", 1, 20.0), ("lora", 4, 40.0), ("mora", 1, 20.0 + gap),
        ("mora", 4, 40.0 + gap),
    ]:  # fmt: skip
        for seed in range(seeds):
            for steps in (100, 200, 400):
                value = (level + rng.normal(0, 1)) / 100
                rows.append({
                    "adapter": adapter, "rank": rank, "seed": seed, "train.max_steps": steps,
                    "task": "memorised", "task_type": "measure", "metric": "characters",
                    "value": value, "train_key": f"{adapter}{rank}{seed}{steps}", "alias": False,
                })  # fmt: skip
    return pd.DataFrame(rows)


def test_means_are_those_of_the_runs():
    frame = from_results(results())
    section = memorised.section(frame)
    points = section.blocks[2].table.frame
    assert len(points) == 15
    lora = results().query("adapter == 'lora' and rank == 4 and `train.max_steps` == 200")["value"]
    row = points.query("adapter == 'lora' and rank == 4 and steps == 200").iloc[0]
    assert row["estimate"] == pytest.approx(100 * lora.mean())
    half = 2.7764451 * 100 * lora.std(ddof=1) / 5**0.5  # t at 0.975, 4 df
    assert row["high"] - row["estimate"] == pytest.approx(half)
    assert points.query("adapter == 'full'")["rank"].isna().all()


@pytest.mark.parametrize(("gap", "above"), [(30.0, 6), (0.0, 0), (-15.0, 0)])
def test_the_order_is_put_to_the_test(gap, above):
    text = memorised.section(from_results(results(gap))).blocks[0].text
    assert f"mora above lora at {above} of 6 points" in text
    assert ("below it at 6" in text) == (gap < 0)


def test_the_first_screen_has_the_answer():
    whole = fake_results()
    raw = results().assign(**{n: whole[n].iloc[0] for n in whole if n not in results()})
    page = build._plain_page(raw, from_results(raw), ("", None), ("uuid", "no benchmark"))
    assert "mora above lora at 6 of 6 points" in str(page.first)
    assert plain.NOTHING not in str(page.first)


def test_nothing_without_several_numbers_of_steps():
    frame = from_results(results().query("`train.max_steps` == 100"))
    assert memorised.section(frame) is None


def test_published_numbers_are_the_papers_table():
    table = figures.published().set_index(["adapter", "rank", "steps"])["estimate"]
    assert table["mora", 8.0, 700] == 87.4
    assert table["lora", 256.0, 500] == 70.6
    assert len(table) == 20
