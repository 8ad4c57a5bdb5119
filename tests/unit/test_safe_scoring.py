"""What was trained is safe before it is scored, and scores of two models never share a record."""

import pandas as pd
import pytest

from ablate import run
from ablate.adapters.mora.lanes import kind
from ablate.beside import Trained
from ablate.errors import UserError
from ablate.experiment.cell_data import tokenised
from ablate.experiment.identity import identify
from ablate.experiment.request import plan_grid
from ablate.results.store import Store
from ablate.training.history import check_same

SHORT = (
    "masking=none", "plw=0.1", "rank=2", "train.lr=0.01", "train.batch_size=8", "train.max_steps=3",
    "dataset.max_rows=40", "evaluate.tasks=[]", "evaluate.heldout_rows=8",
    "execution.device=cpu", "report=false",
)  # fmt: skip
NOISE = ("costs", "provenance")


def planned(*asked):
    [named] = [n for n in plan_grid([*SHORT, *asked]).design.cells if not n.cell.is_base]
    return named


def contents(store, key):
    record = {k: v for k, v in store.record(key).items() if k not in NOISE}
    tables = [pd.read_parquet(store.folder(key) / f"{n}.parquet") for n in ("items", "history")]
    return record, tables


def interrupted(*_):
    raise KeyboardInterrupt


def forbidden(*_, **__):
    raise AssertionError("trained a second time")


@pytest.mark.parametrize(
    "asked", [("adapter=mora",), ("adapter=full", "execution.keep_weights_mb=0")]
)
def test_an_attempt_that_ends_while_scoring_costs_the_scores_alone(asked, tmp_path, monkeypatch):
    named = planned(*asked)
    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    whole.prepare()
    broken.prepare()
    run.run_cells([named.cell], named.key, whole)
    with monkeypatch.context() as patched:
        patched.setattr(run, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.run_cells([named.cell], named.key, broken)
    assert broken.record(named.key) is None
    assert broken.is_trained(named.key)
    monkeypatch.setattr(run, "train", forbidden)
    run.run_cells([named.cell], named.key, broken)
    record, tables = contents(broken, named.key)
    expected, expected_tables = contents(whole, named.key)
    assert record == expected
    for table, other in zip(tables, expected_tables, strict=True):
        pd.testing.assert_frame_equal(table, other)
    costs = broken.record(named.key)["costs"]
    assert costs["train_seconds"] > 0
    assert costs["eval_seconds"] > 0
    log = (broken.folder(named.key) / "log.txt").read_text()
    assert "trained 3 steps" in log
    assert "by an earlier attempt" in log
    small = "execution.keep_weights_mb=0" not in asked
    for store in (whole, broken):
        assert (store.folder(named.key) / "weights").exists() == small
        assert not list(store.trained.iterdir())


def test_what_was_trained_beside_others_is_safe_before_any_is_scored(tmp_path, monkeypatch):
    named = planned("adapter=mora")
    whole, beside = Store(tmp_path / "whole"), Store(tmp_path / "beside")
    whole.prepare()
    beside.prepare()
    run.run_cells([named.cell], named.key, whole)
    identity = identify(named.cell)
    model, course = run._trained(named.cell, identity, tokenised(named.cell, "train"))
    trained = Trained(model, course, model, kind)
    run.keep_beside(named.cell, named.key, beside, trained)
    assert beside.is_trained(named.key)
    monkeypatch.setattr(run, "train", forbidden)
    with monkeypatch.context() as patched:
        patched.setattr(run, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.run_cells([named.cell], named.key, beside, beside=trained)
    run.run_cells([named.cell], named.key, beside)  # from the store alone
    assert contents(beside, named.key)[0] == contents(whole, named.key)[0]
    assert not list(beside.trained.iterdir())


def test_weights_that_cannot_be_written_do_not_cost_the_run(tmp_path, monkeypatch):
    named, store = planned("adapter=lora"), Store(tmp_path)
    store.prepare()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.weights, "save", full)
    run.run_cells([named.cell], named.key, store)
    assert store.record(named.key)["scores"]
    assert "NOT SAFE" in (store.folder(named.key) / "log.txt").read_text()


def other_history(store, key, history):
    """Give the record of `key` another course of training, as if it were its own."""
    with store.amending(key) as draft:
        (draft / "history.parquet").unlink()
        history.to_parquet(draft / "history.parquet")


def test_scores_asked_for_later_are_those_of_the_same_model_or_refused(tmp_path):
    dropped = ("execution.keep_weights_mb=0", "evaluate.measures=[]")
    first, later = planned(*dropped), planned(*dropped, "evaluate.heldout=[test,validation]")
    store = Store(tmp_path)
    store.prepare()
    run.run_cells([first.cell], first.key, store)
    run.run_cells([later.cell], later.key, store)
    assert first.key == later.key
    record = store.record(first.key)
    assert {s["task"] for s in record["scores"]} == {"heldout_test", "heldout_validation"}
    assert len(record["provenance"]["scored"]) == 2
    folder = store.folder(first.key)
    assert not (folder / "weights").exists()
    history = pd.read_parquet(folder / "history.parquet")
    other_history(store, first.key, history.assign(loss=history["loss"] * (1 + 1e-5)))
    more = planned(dropped[0], "evaluate.heldout=[]", "evaluate.measures=[train_loss_rsd]")
    run.run_cells([more.cell], more.key, store)  # rounding
    other_history(store, first.key, history.assign(loss=history["loss"] * 1.01))
    before = store.record(first.key)
    most = planned(dropped[0], "evaluate.heldout=[]", "evaluate.measures=[weight_distance]")
    with pytest.raises(UserError, match="another model"):
        run.run_cells([most.cell], most.key, store)
    assert store.record(first.key) == before


def test_another_seed_is_another_model_and_another_machine_may_not_be(tmp_path):
    losses = [[{"loss": x * (1 + shift), "step": 1}] for x in (2.0,) for shift in (0, 0.02)]
    check_same(losses[1], losses[0], "bf16")
    with pytest.raises(UserError, match="step 1 where 2 is recorded"):
        check_same(losses[1], losses[0], "fp32")
    with pytest.raises(UserError, match="2 steps where 1 is recorded"):
        check_same(losses[0] * 2, losses[0], "fp32")
