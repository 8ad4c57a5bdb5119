"""Items that see more: margins from log-likelihoods, and what responses and items are worth."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.questions.informative import section
from analysis.questions.informative.estimate import (
    Grid,
    grid,
    items_table,
    per_run,
    response_table,
    telling,
    telling_items,
)
from analysis.table.items import Items
from analysis.table.margins import margins_of

C, S = 24, 6


def items_of(scores_CSI, task="t"):
    """Return a table of items with these scores, a run per cell and seed."""
    cells, seeds, count = scores_CSI.shape
    runs = pd.DataFrame(
        [{"run": f"{c} {s}", "lr": 0.001 * 1.5**c, "seed": s, "dataset": "d", "model": "m",
          "adapter": "lora"} for c in range(cells) for s in range(seeds)]
    )  # fmt: skip
    table = pd.DataFrame({"task": pd.Categorical([task] * count), "doc_id": np.arange(count) + 7,
                          "binary": True})  # fmt: skip
    return Items(scores_CSI.reshape(-1, count).astype(np.float32), runs, table)


def drawn(rng, *, signal_I, seeds=S, cells=C, block=3.0, noise=40.0):
    """Return scores whose cells differ on every item by so much of one number per cell."""
    ability_C = rng.normal(0, 1, cells)
    return (
        50.0 + ability_C[:, None, None] * signal_I + rng.normal(0, block, (1, seeds, 1))
        + rng.normal(0, noise, (cells, seeds, len(signal_I)))
    )  # fmt: skip


def test_q_is_the_variance_between_cells_over_that_of_a_run():
    """By the F test of two-way analysis of variance, and on average the truth."""
    rng, found = np.random.default_rng(0), []
    y_CS = rng.normal(size=(5, 3)) + rng.normal(size=(5, 1))
    cell_C, seed_S = y_CS.mean(axis=1, keepdims=True), y_CS.mean(axis=0, keepdims=True)
    rest = ((y_CS - cell_C - seed_S + y_CS.mean()) ** 2).sum() / 8
    f = 3 * ((cell_C - y_CS.mean()) ** 2).sum() / 4 / rest
    assert per_run(y_CS) == pytest.approx((f - 1) / 3)
    for _ in range(300):
        cells = rng.normal(0, 2, (40, 1))
        found.append(per_run(cells + rng.normal(0, 5, (1, 6)) + rng.normal(0, 1, (40, 6))))
    assert np.median(found) == pytest.approx(4, rel=0.1)


def test_items_that_see_cells_are_found_and_take_fewer_seeds():
    """A quarter of the items has all of the signal: without the rest the noise is that of fewer."""
    rng = np.random.default_rng(0)
    order = rng.permutation(240)
    signal_I = np.repeat([8.0, 0.0], [60, 180])[order]
    items = items_of(drawn(rng, signal_I=signal_I, noise=30.0, seeds=9, cells=60))
    half, quarter = items_table(items).to_dict("records")
    assert (half["items"], half["kept"], quarter["kept"]) == (120, 60, 30)
    for row in (half, quarter):
        assert row["seeds"] == 5
        assert row["low"] < row["factor"] < row["high"] < 1
        assert row["scale_low"] > 1.2
        assert row["agree"] > row["agree_all"]
    # All signal on a quarter: a difference there is four times as large as on all.
    assert quarter["scale"] == pytest.approx(4.0, rel=0.3)
    assert quarter["factor"] == pytest.approx(1 / 4, abs=0.12)
    ids = telling_items(items)
    right = set(np.flatnonzero(signal_I > 0) + 7)
    assert len(ids) == 60
    assert len(right & set(ids["doc_id"])) > 50


def test_equal_items_are_worth_their_number():
    rng, factors, scales = np.random.default_rng(2), [], []
    for _ in range(15):
        scores = drawn(rng, signal_I=np.full(80, 8.0), noise=30.0)
        row = items_table(items_of(scores)).iloc[0]
        factors.append(row["factor"])
        scales.append(row["scale"])
    assert np.median(factors) == pytest.approx(2.0, rel=0.25)  # half of the items, noise of items
    assert np.median(scales) == pytest.approx(1.0, abs=0.1)  # and the choice adds no bias


def test_without_any_difference_of_cells_nothing_is_said_to_be_saved():
    rng, low = np.random.default_rng(3), 0
    for _ in range(20):
        table = items_table(items_of(drawn(rng, signal_I=np.zeros(60))))
        known = table.dropna(subset=["high"])
        low += bool(((known["high"] < 1) & (known["agree"] >= known["agree_all"])).any())
    assert low <= 3


@pytest.mark.filterwarnings("error")
def test_scores_that_never_vary_are_told_nothing_of_and_warn_of_nothing():
    table = items_table(items_of(np.zeros((C, S, 12))))
    assert table[["factor", "scale", "agree", "agree_all"]].isna().all().all()
    none = items_of(np.zeros((C, S, 12)))
    assert response_table(none, none)["agree"].isna().all()


def test_the_page_says_what_the_numbers_bear():
    """Fewer seeds count where the telling items see no less of what the rest sees."""
    rows = [
        {"factor": 0.2, "low": 0.1, "high": 0.4, "agree": 0.9, "agree_all": 0.8},
        {"factor": 0.4, "low": 0.2, "high": 0.8, "agree": 0.9, "agree_all": 0.9},
        {"factor": 0.1, "low": 0.05, "high": 0.2, "agree": 0.2, "agree_all": 0.8},  # sees another
        {"factor": 0.9, "low": 0.6, "high": 1.4, "agree": 0.9, "agree_all": 0.8},
        {"factor": 2.0, "low": 1.2, "high": 3.0, "agree": 0.9, "agree_all": 0.8},
        {"factor": np.nan, "low": np.nan, "high": np.nan, "agree": 0.9, "agree_all": 0.8},
    ]
    assert section._of_items(pd.DataFrame(rows)) == (
        "Half or a quarter of the items, chosen on other seeds, take fewer seeds than all in 2 of "
        "5 combinations of data set, task and share without seeing less of what the rest sees, to "
        "0.3 of them (median); more in 1."
    )
    assert section._of_responses(pd.DataFrame(rows)) == (
        "The log-likelihood margin takes fewer seeds than accuracy in 3 of 5 combinations of data "
        "set and task, more in 1."
    )
    assert section._of_items(pd.DataFrame()) == section._of_responses(pd.DataFrame()) == ""


def test_the_item_itself_does_not_count_towards_what_it_goes_with():
    loud, other = np.zeros((6, 4)), np.arange(6.0)
    loud[:, 0] = [50, -100, 50, 50, -100, 50]  # varies most, with nothing else
    loud[:, 1] = loud[:, 2] = other
    assert telling(loud, 0.5).tolist() == [1, 2]


def test_cells_and_seeds_that_do_not_cross_are_left_out():
    items = items_of(drawn(np.random.default_rng(0), signal_I=np.full(9, 5.0)))
    gone = items.runs["run"] == "3 1"
    found = grid(items.of(runs=~gone))
    assert isinstance(found, Grid)
    assert (found.cells, found.seeds) == (C - 1, S)
    assert grid(items.of(runs=items.runs["seed"] == 0)) is None


def test_margins_are_those_of_the_right_option(tmp_path):
    """Written as a record has them; the right option is that of any run that was right."""
    said = {
        "0 0": {7: ([-1.0, -3.0, -2.0], 1.0), 8: ([-1.0, -2.0], 0.0), 9: ([-1.0, -2.0], 0.0)},
        "0 1": {7: ([-2.5, -0.5, -2.0], 0.0), 8: ([-4.0, -2.0], 1.0), 9: ([-3.0, -2.5], 0.0)},
    }
    for run, own in said.items():
        folder = tmp_path / "cells" / run
        folder.mkdir(parents=True)
        rows = [{"task": "t", "metric": m, "doc_id": i, "score": s, "loglikelihoods": ll}
                for i, (ll, s) in own.items() for m in ("acc", "acc_norm")]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), folder / "items.parquet")
    scores = np.array([[[100.0, 0, 0], [0, 100, 0]]])
    items = items_of(scores)
    found = margins_of(items, tmp_path)
    assert found is not None
    assert found.items["doc_id"].tolist() == [7, 8]  # 9 was never right
    assert found.scores_RI.tolist() == [[1.0, -1.0], [-2.0, 2.0]]
    right = items.scores_RI[:, :2] == 100
    assert ((found.scores_RI > 0) == right).all()
    assert margins_of(items, tmp_path / "nowhere") is None
    bare = pq.read_table(folder / "items.parquet").drop_columns(["loglikelihoods"])
    pq.write_table(bare, folder / "items.parquet")
    assert margins_of(items, tmp_path) is None  # as another writer of items leaves them


def naive_margins(said, items):
    """Return run by run and item by item what `margins_of` should; None for a task to leave out.

    Args:
        said: run -> (task, number) -> log-likelihoods of the options, None where there are none.
        items: the table of scores.
    """
    runs, columns = list(items.runs["run"]), []
    for task in items.tasks:
        rows = items.items[items.items["task"] == task]
        keys = [(task, i) for i in rows["doc_id"]]
        told = [len(said[r].get(key) or ()) for r in runs for key in keys]
        if not rows["binary"].all() or min(told) < 2:
            continue
        for place, key in zip(rows.index, keys, strict=True):
            right = [r for r, one in enumerate(runs) if items.scores_RI[r, place] == 100]
            if right:
                gold = int(np.argmax(said[runs[right[0]]][key]))
                own = [said[r][key][gold] - max(v for i, v in enumerate(said[r][key]) if i != gold)
                       for r in runs]  # fmt: skip
                if np.isfinite(own).all():
                    columns.append((*key, own))
    return columns


def test_margins_are_those_of_a_loop_over_runs_and_items(tmp_path):
    """Items of any number of options, in any order and twice; tasks that some run lacks."""
    rng, runs = np.random.default_rng(4), [f"{i}" for i in range(7)]
    counts = {"full": 9, "ragged": 12, "one": 5, "lacking": 6, "scored": 4, "apart": 3}
    options = {(t, 3 * i): int(rng.integers(2, 6)) for t, n in counts.items() for i in range(n)}
    options |= {("full", 3 * i): 4 for i in range(9)}
    said = {
        r: {key: [float(np.float32(v)) for v in rng.normal(-5, 2, size)]
            for key, size in options.items()}
        for r in runs
    }  # fmt: skip
    said["3"]["one", 6] = [-1.0]
    said["5"]["scored", 3] = None
    del said["2"]["lacking", 9]
    said["6"]["ragged", 9] = [-np.inf] * options["ragged", 9]
    for run, own in said.items():
        again = [key for key in own if key[0] == "ragged"][:3]  # told before, and then otherwise
        rows = [{"task": t, "metric": "acc", "doc_id": i, "score": 1.0,
                 "loglikelihoods": [-1.0, -2.0, -3.0] if turn == 0 else own[t, i]}
                for turn, keys in enumerate((again, rng.permutation([*own]).tolist()))
                for t, i in ((str(t), int(i)) for t, i in keys)]  # fmt: skip
        (tmp_path / "cells" / run).mkdir(parents=True)
        kind = pa.schema({"task": pa.large_string(), "metric": pa.large_string(),
                          "doc_id": pa.int32(), "score": pa.float32(),
                          "loglikelihoods": pa.list_(pa.float32())})  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows, kind), tmp_path / "cells" / run / "items.parquet")
    keys = sorted(options)
    table = pd.DataFrame(keys, columns=["task", "doc_id"]).astype({"task": "category"})
    score = np.where(rng.random((len(runs), len(keys))) < 0.2, 100.0, 0.0).astype(np.float32)
    items = Items(score, pd.DataFrame({"run": runs}), table.assign(binary=table["task"] != "apart"))
    found, wanted = margins_of(items, tmp_path), naive_margins(said, items)
    assert found is not None
    assert {task for task, _, _ in wanted} == {"full", "ragged"} == set(found.tasks)
    assert ("ragged", 9) not in [one[:2] for one in wanted]  # -inf less -inf
    assert list(zip(found.items["task"], found.items["doc_id"], strict=True)) == [
        one[:2] for one in wanted
    ]
    assert np.array_equal(found.scores_RI, np.array([own for _, _, own in wanted]).T)


def test_a_response_with_less_noise_takes_fewer_seeds():
    rng = np.random.default_rng(5)
    ability = rng.normal(0, 1, (C, 1, 1))
    shared = rng.normal(0, 1, (C, S, 50))
    acc = items_of(50 + 8 * ability + 40 * shared)
    margin = items_of(0.4 * ability + 1.0 * shared)  # the same noise, twice the signal in its units
    (row,) = response_table(acc, margin).to_dict("records")
    assert row["factor"] == pytest.approx(1 / 4, rel=0.2)
    assert row["low"] < row["factor"] < row["high"] < 1
    assert row["agree"] > 0.9
