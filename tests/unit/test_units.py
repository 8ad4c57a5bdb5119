"""A score states its unit: from where it is made through record and table to points."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ablate.errors import UserError
from ablate.evaluate import harness
from ablate.results.record import SCHEMA, rows_of, upgraded
from ablate.results.store import Store
from analysis.table.frame import from_results, load, study_rows
from analysis.table.items import _scales
from tests import stored
from tests.fake_results import fake_results

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "records" / "schema_1.json"


def task(metric="acc", *, rule=None, corpus=False, **stated):
    """What the harness asks of a task of lm-eval."""

    def mean(values): ...

    def own(values): ...

    own.__name__ = metric
    return SimpleNamespace(
        config=SimpleNamespace(process_results=rule, metadata=stated),
        aggregation=lambda: {metric: own if corpus else mean},
    )


@pytest.mark.parametrize(
    ("metric", "about", "unit"),
    [
        ("acc_norm", {}, "fraction"),
        ("exact_match", {"rule": len}, "fraction"),
        ("bleu", {"corpus": True}, "points"),
        ("bleu", {"rule": len, "corpus": True}, "points"),
        ("bleu", {"rule": len}, None),  # by a rule of the task's own, which may be either
        ("f1", {"rule": len}, None),
        ("f1", {"rule": len, "unit": "points"}, "points"),
        ("word_perplexity", {}, "perplexity"),
        ("pct_male_preferred", {}, None),
    ],
)
def test_the_unit_of_a_benchmark(metric, about, unit):
    assert harness._unit("t", task(metric, **about), metric) == unit


def test_a_unit_that_is_none_is_one_line():
    with pytest.raises(UserError, match=r"t: metadata.unit=percent: must be one of fraction"):
        harness._unit("t", task(unit="percent"), "acc")


def test_the_micro_world_scores_in_fractions():
    assert harness._unit("micro_translation", task("chrf", rule=len), "chrf") == "fraction"


def rows(unit, *, metric="score", values=(0.2, 0.9)):
    return pd.DataFrame({
        "train_key": [f"k{i}" for i in range(len(values))], "task": "t", "metric": metric,
        "value": values, "task_type": "short", "unit": unit,
    })  # fmt: skip


def test_the_stated_unit_decides_and_not_the_range():
    assert from_results(rows("points"))["score"].tolist() == [0.2, 0.9]
    assert from_results(rows("fraction"))["score"].tolist() == [20.0, 90.0]
    above = from_results(rows("fraction", values=(0.5, 1.2)))  # a sum of shares may exceed one
    np.testing.assert_allclose(above["score"], [50.0, 120.0])
    assert not any("unit" in note for note in from_results(rows("points")).attrs["notes"])


def test_without_a_unit_the_range_decides_and_the_notes_say_so():
    for table in (rows(None), rows(None).drop(columns="unit")):
        frame = from_results(table)
        assert frame["score"].tolist() == [20.0, 90.0]
        assert frame.attrs["notes"] == [
            "The unit of 1 tasks' scores is not stated: they are taken for fractions where all "
            "values lie between 0 and 1, else for points."
        ]


def test_items_are_scaled_by_the_same_number():
    frame = from_results(rows("fraction", values=(0.0, 0.0)))  # no ratio of values could tell
    assert _scales(frame) == {"t": 100.0}
    low = from_results(rows("points").assign(higher_is_better=False))
    assert _scales(low) == {"t": -1.0}


def test_a_record_of_the_first_schema_is_read(tmp_path):
    old = json.loads(OLD.read_text())
    assert old["schema"] == 1
    folder = stored.put(tmp_path, old["train_key"])
    (folder / "record.json").write_text(OLD.read_text())
    record = Store(tmp_path).record(old["train_key"])
    assert record["schema"] == SCHEMA
    assert {s["unit"] for s in record["scores"]} == {None}
    assert [s["asked"] for s in record["scores"]] == [s["unit"] for s in old["scores"]]
    name = {
        "levels": {}, "effective_plw": 0.1, "rg": 1.0, "train_rows": 5, "alias": False,
        "train_key": old["train_key"], "status": "done", "score_keys": old["score_keys"],
    }  # fmt: skip
    table = pd.DataFrame(rows_of(name, record))
    assert len(table) == len(old["scores"])
    bench = from_results(table.assign(adapter="lora")).query("task == 'micro_knowledge'")
    np.testing.assert_allclose(bench["score"], 100 * bench["value"])


def test_a_record_of_today_stays_as_it_is_without_its_seal():
    record = {"schema": SCHEMA, "scores": [{"asked": "a", "unit": "points"}]}
    assert upgraded(record | {"seal": {}}) == record


def test_an_older_table_is_read_as_it_was(tmp_path):
    table = pd.read_csv(ROOT / "notebooks" / "data" / "quick_results.csv")
    table.drop(columns="unit").to_csv(tmp_path / "older.csv", index=False)
    frame = load(tmp_path / "older.csv")
    study = study_rows(frame)
    np.testing.assert_allclose(study["score"], 100 * study["value"])
    assert any("unit of 6 tasks' scores is not stated" in note for note in frame.attrs["notes"])


def test_a_stated_unit_gives_the_scores_that_the_range_gave():
    table = fake_results(controls=False)
    unit = np.where(table["metric"] == "bleu", "points", "fraction")
    pd.testing.assert_series_equal(
        from_results(table)["score"], from_results(table.assign(unit=unit))["score"]
    )
