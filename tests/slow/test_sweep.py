"""Sweeps end to end on the shipped base: tables, aliases, resuming, failures, added benchmarks."""

import json

import pandas as pd
import pytest

from ablate import cli
from ablate.experiment.design import collect
from ablate.results.store import Store
from ablate.training.history import Diverged
from ablate.training.loop import train

pytestmark = pytest.mark.slow

CELLS = ["train.lr=1e-3", "train.max_steps=8", "evaluate=none", "report=false"]
GRID = ["masking=instruction,none", "plw=0,0.5", "adapter=lora,full", "rank=2,4", *CELLS]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("swept")
    assert cli.main(["sweep", *GRID, f"out={out}", "hydra/launcher=basic"]) == 0
    return out


def table(out):
    return pd.read_parquet(out / "results.parquet")


def test_every_name_has_rows_and_every_run_counts_once(swept):
    frame = table(swept)
    cells = frame[frame["adapter"] != "none"]
    names = cells.groupby(["masking", "plw", "adapter", "rank"]).ngroups
    assert names == 16
    # instruction at both PLW and none at 0 are one run; full is one run at both ranks: 2 x (2 + 1).
    assert cells["train_key"].nunique() == 6
    counted = cells[~cells["alias"]]
    assert not counted.duplicated(["train_key", "task", "metric"]).any()
    assert set(counted["train_key"]) == set(cells["train_key"])
    assert (cells["status"] == "done").all()


def test_effective_plw_is_what_the_loss_saw(swept):
    frame = table(swept)
    asked = frame[(frame["masking"] == "instruction") & (frame["plw"] == 0.5)]
    assert (asked["effective_plw"] == 0).all()
    assert (
        frame[(frame["masking"] == "none") & (frame["plw"] == 0.5)]["effective_plw"] == 0.5
    ).all()


def test_a_record_answers_what_a_sceptic_asks(swept):
    records = {key: Store(swept).record(key) for key in Store(swept).recorded()}
    key, record = next((k, r) for k, r in records.items() if r["training"]["steps"])
    assert record["provenance"]["packages"]["torch"]
    assert set(record["provenance"]["code"]) == {"commit", "dirty"}
    assert record["parameters"]["trainable"] > 0
    assert record["training"]["steps"] == 8
    assert record["data"]["dropped"] == {}
    assert 0 < record["costs"]["completion_grad_share"] <= 1
    history = pd.read_parquet(swept / "cells" / key / "history.parquet")
    assert list(history["step"]) == list(range(1, 9))
    assert (swept / "cells" / key / "log.txt").read_text().count("trained 8 steps") == 1


def test_the_same_command_again_trains_nothing(swept, capsys):
    before = {p: p.stat().st_mtime_ns for p in swept.glob("cells/*/record.json")}
    assert cli.main(["sweep", *GRID, f"out={swept}", "hydra/launcher=basic"]) == 0
    assert {p: p.stat().st_mtime_ns for p in swept.glob("cells/*/record.json")} == before
    assert "0 new" in capsys.readouterr().out


def test_a_wider_grid_runs_only_what_is_new(swept):
    before = set(Store(swept).recorded())
    words = [w.replace("plw=0,0.5", "plw=0,0.5,1") for w in GRID if not w.startswith("rank")]
    assert cli.main(["sweep", *words, "rank=2", f"out={swept}", "hydra/launcher=basic"]) == 0
    assert len(set(Store(swept).recorded()) - before) == 2  # none at PLW 1: lora and full


def test_a_benchmark_added_later_scores_and_does_not_retrain(swept):
    store = Store(swept)
    before = {key: store.record(key)["provenance"]["finished"] for key in store.recorded()}
    words = [*GRID, "evaluate.tasks=[micro_questions]", "evaluate.limit=20"]
    assert cli.main(["sweep", *words, f"out={swept}", "hydra/launcher=basic"]) == 0
    frame = table(swept)
    asked = frame[frame["task"] == "micro_questions"]
    assert asked["train_key"].nunique() == 6 + 1  # the base too
    for key, finished in before.items():
        assert store.record(key)["provenance"]["finished"] == finished
    key = asked[asked["adapter"] == "lora"]["train_key"].iloc[0]
    items = pd.read_parquet(swept / "cells" / key / "items.parquet")
    assert (items["task"] == "micro_questions").sum() == 20
    # The kept weights are the trained ones: the added score equals a fresh run's.
    fresh = swept / "fresh"
    assert cli.main(["sweep", *words, f"out={fresh}", "hydra/launcher=basic"]) == 0
    pick = ["train_key", "task", "metric", "value"]
    again = table(fresh).drop_duplicates(pick[:3])[pick]
    both = again.merge(frame.drop_duplicates(pick[:3])[pick], on=pick[:3])
    assert len(both) > 6
    assert (both["value_x"] == both["value_y"]).all()


def test_a_failing_cell_is_recorded_and_spares_the_others(tmp_path, capsys, monkeypatch):
    def fails_at_a_large_rate(model, data, settings, **rest):
        if settings.lr > 1e-2:
            raise Diverged(3, "loss", float("inf"))
        return train(model, data, settings, **rest)

    monkeypatch.setattr("ablate.run.train", fails_at_a_large_rate)
    words = [*CELLS, "adapter=lora", "rank=2", "train.lr=1e-3,0.5"]
    status = cli.main(["sweep", *words, f"out={tmp_path}", "hydra/launcher=basic"])
    failures = [json.loads(p.read_text()) for p in (tmp_path / "failures").glob("*.json")]
    assert status == 1
    assert len(failures) == 1
    assert "Diverged" in failures[0]["error"]
    assert failures[0]["traceback"]
    assert len(Store(tmp_path).recorded()) == 2  # the base and the good cell
    frame = table(tmp_path)
    assert set(frame["status"]) == {"done", "failed"}
    assert cli.main(["status", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "1 failed" in told
    assert "Diverged" in told
    # Not tried again unasked, tried again when asked.
    assert cli.main(["sweep", *words, f"out={tmp_path}", "hydra/launcher=basic"]) == 1
    assert len(list((tmp_path / "failures").glob("*.json"))) == 1
    words += ["--retry-failed", "hydra/launcher=basic"]
    assert cli.main(["sweep", *words, f"out={tmp_path}"]) == 1
    kept = [json.loads(p.read_text()) for p in (tmp_path / "failures").glob("*.json")]
    assert len(kept) == 1
    assert kept[0]["time"] > failures[0]["time"]


def test_run_is_a_sweep_of_one_cell(tmp_path):
    words = ["masking=none", "plw=0.5", "adapter=mora", "rank=2", *CELLS]
    assert cli.main(["run", *words, f"out={tmp_path}"]) == 0
    assert len(Store(tmp_path).recorded()) == 2


def test_the_table_can_be_made_again_from_the_records(swept):
    before = table(swept)
    (swept / "results.parquet").unlink()
    collect(swept)
    pd.testing.assert_frame_equal(table(swept), before)
