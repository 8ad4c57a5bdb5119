"""A sweep whose workers train cells side by side, against one that trains them one by one."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from ablate import beside, sweep
from ablate.config import grid
from ablate.config.compose import expand
from ablate.experiment.design import design
from ablate.results.store import Store
from ablate.training import stop
from ablate.work import work

LINE = (
    "masking=none,instruction", "plw=0.1,1", "adapter=lora,mora,vera", "rank=2", "train.lr=0.005",
    "train.max_steps=4", "train.batch_size=8", "dataset.max_rows=64", "evaluate=plw_micro",
    "evaluate.limit=6", "evaluate.heldout_rows=16", "evaluate.measure_rows=5",
    "execution.device=cpu",
)  # fmt: skip
BRIEF = ("plw=1", "adapter=lora", "train.max_steps=1", "dataset.max_rows=32")


def planned(line):
    return design(grid.cells(expand([*line])), study="none")


def swept(out, lanes):
    plan = planned([*LINE, f"execution.lanes={lanes}"])
    store = Store(out)
    store.prepare()
    for bundle in sweep.write_bundles(dict(plan.runs), out, workers=sweep.Workers()):
        work(bundle)
    assert not store.attempted()
    return plan, store


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return [swept(tmp_path_factory.mktemp("out"), lanes) for lanes in (1, 16)]


@pytest.mark.slow
def test_records_are_those_of_cells_alone(both):
    (plan, alone), (same, beside) = both
    assert list(plan.runs) == list(same.runs)
    assert alone.recorded() == beside.recorded() == sorted(plan.runs)
    for key in plan.runs:
        one, other = alone.record(key), beside.record(key)
        assert one["identity"] == other["identity"]
        assert one["parameters"] == other["parameters"]
        for old, new in zip(one["scores"], other["scores"], strict=True):
            assert new["value"] == pytest.approx(old["value"], rel=1e-4)
        check_same_items(alone, beside, key)
        if plan.runs[key][0].cell.is_base:
            continue
        losses = [
            pd.read_parquet(store.folder(key) / "history.parquet")["loss"]
            for store in (alone, beside)
        ]
        assert losses[1].tolist() == pytest.approx(losses[0].tolist(), rel=1e-5)


def check_same_items(alone, beside, key):
    """What every item was asked and answered is the same, likelihoods up to rounding."""
    one, other = (pd.read_parquet(store.folder(key) / "items.parquet") for store in (alone, beside))
    numbers = ["score", "loglikelihoods"]
    pd.testing.assert_frame_equal(one.drop(columns=numbers), other.drop(columns=numbers))
    assert other["score"].tolist() == pytest.approx(one["score"].tolist(), rel=1e-4, nan_ok=True)
    values, known = (
        [x for row in each["loglikelihoods"].dropna() for x in row] for each in (other, one)
    )
    assert values == pytest.approx(known, rel=1e-4)
    assert len(known) > 50
    assert one["output"].nunique() > 5


def test_a_record_says_in_how_many_lanes_it_was_trained(both):
    (_, alone), (plan, beside) = both
    assert {alone.record(key)["provenance"]["lanes"] for key in plan.runs} == {1}
    lanes = {
        names[0].cell.adapter.name: beside.record(key)["provenance"]["lanes"]
        for key, names in plan.runs.items()
    }
    assert lanes["vera"] == lanes["none"] == 1
    assert lanes["lora"] == lanes["mora"] == 6
    scored = {key: [past["lanes"] for past in scored_of(beside, key)] for key in plan.runs}
    assert scored == {key: [beside.record(key)["provenance"]["lanes"]] for key in plan.runs}
    assert {past["lanes"] for key in plan.runs for past in scored_of(alone, key)} == {1}


def scored_of(store, key):
    return store.record(key)["provenance"]["scored"]


def test_what_other_lanes_spent_for_a_cell_is_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr("ablate.evaluate.lanes.owed", lambda model: 1000.0)
    plan = design(grid.cells(expand(["evaluate=none", *BRIEF])), study="none")
    store = Store(tmp_path)
    store.prepare()
    for bundle in sweep.write_bundles(dict(plan.runs), tmp_path, workers=sweep.Workers()):
        work(bundle)
    assert all(1000 < store.record(key)["costs"]["eval_seconds"] < 2000 for key in plan.runs)


@pytest.mark.slow
def test_a_group_that_fails_is_trained_one_by_one(tmp_path, monkeypatch, capsys):
    def fails(cells, **_):
        raise ValueError("no lanes today")

    monkeypatch.setattr("ablate.beside.train_beside", fails)
    plan, store = swept(tmp_path, 16)
    assert store.recorded() == sorted(plan.runs)
    assert "train one after another: no lanes today" in capsys.readouterr().err


@pytest.mark.parametrize("most", [3, 1])
def test_lanes_that_do_not_fit_are_divided(most, monkeypatch, capsys):
    """More than `most` lanes at once run out of memory; what is trained is the same."""

    line = ["masking=none", "plw=0.1,0.2,0.5,0.7,1", *BRIEF[1:], "execution.lanes=8"]
    cells = {key: names[0].cell for key, names in planned(line).runs.items()}
    cells = {key: cell for key, cell in cells.items() if not cell.is_base}
    whole, usual, tried = beside.train_beside(cells), beside.loop.train, []

    def limited(base, lanes, **settings):
        tried.append(len(lanes))
        if len(lanes) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(base, lanes, **settings)

    monkeypatch.setattr(beside.loop, "train", limited)
    found = beside.train_beside(cells)
    assert tried == ([5, 2, 3] if most == 3 else [5, 2, 1, 1, 3, 1, 2, 1, 1])
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "out of memory: 5 cells train in two parts"
    assert len(said) == len(tried) - 5 if most == 1 else 1
    for key, one in found.items():
        losses = [[entry["loss"] for entry in each.course.history] for each in (one, whole[key])]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_lane_that_diverges_is_a_failure_of_its_own(tmp_path, monkeypatch):
    from ablate.training.history import Diverged

    usual = beside.train_beside

    def one_diverges(cells, **given):
        found = usual(cells, **given)
        key = next(iter(found))
        return found | {key: replace(found[key], course=Diverged(3, "loss", float("inf")))}

    monkeypatch.setattr(beside, "train_beside", one_diverges)
    plan = design(grid.cells(expand([*LINE[:2], *LINE[3:], "execution.lanes=16"])), study="none")
    store = Store(tmp_path)
    store.prepare()
    for bundle in sweep.write_bundles(dict(plan.runs), tmp_path, workers=sweep.Workers()):
        work(bundle)
    [dead] = store.attempted()
    assert "step 3: loss is inf" in json.dumps(store.failures(dead))
    assert store.recorded() == sorted(set(plan.runs) - {dead})


def test_a_group_that_is_stopped_goes_on_side_by_side_from_its_checkpoints(tmp_path, monkeypatch):
    line = [*LINE, "execution.lanes=16", "execution.checkpoint_minutes=0", "evaluate=none"]
    plan, store = planned(line), Store(tmp_path)
    store.prepare()
    usual, calls = beside.loop.SavedTogether.after_step, []

    def after_step(self, writes):
        calls.append(len(writes))
        if len(calls) == 2:
            stop.request_stop()
        return usual(self, writes)

    monkeypatch.setattr(beside.loop.SavedTogether, "after_step", after_step)
    bundles = sweep.write_bundles(dict(plan.runs), tmp_path, workers=sweep.Workers())
    [group] = [bundle for bundle in bundles if json.loads(bundle.read_text())["beside"]]
    with pytest.raises(KeyboardInterrupt, match=r"stopped; (\d+) of \1 cells side by side go on"):
        work(group)
    assert not store.recorded()
    assert not store.attempted()  # an interruption is no failure of any cell
    work(group)
    keys = list(json.loads(group.read_text())["runs"])
    assert calls[0] == len(keys) > 4
    for key in keys:
        assert store.record(key)["provenance"]["resumed"] == [2]
        assert store.record(key)["provenance"]["lanes"] == len(keys)
        assert not store.checkpoints(key).exists()
