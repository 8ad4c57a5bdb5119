"""Items: read once a run, in points; paired differences; the binomial model of runs and items."""

import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from analysis.errors import AnalysisError
from analysis.questions.leaderboard.estimate import BOTH, leaderboards
from analysis.questions.leaderboard.section import section as leaderboard_section
from analysis.questions.noise.item_model import item_model
from analysis.questions.noise.paired import paired
from analysis.questions.noise.section import section
from analysis.regression.study import fitted
from analysis.table.factors import cell_names
from analysis.table.frame import from_results, study_rows
from analysis.table.items import Items, item_weights, read_items

SEEDS, ITEMS = 4, 60


def world(folder, *, seeds=SEEDS, items=ITEMS, seed=0):
    """A results folder of three cells x seeds x two tasks, one of right or wrong."""
    rng = np.random.default_rng(seed)
    rows = []
    hard = {task: rng.normal(0, 1.2, items) for task in ("quiz", "essay")}
    for plw in (0.0, 0.1, 1.0):
        for s in range(seeds):
            key = f"run{plw}-{s}"
            shift = rng.normal(0, 0.2)
            parts = []
            for task, metric in (("quiz", "acc"), ("essay", "facts")):
                chance = expit(hard[task] + shift + plw)
                score = rng.random(items) < chance if task == "quiz" else chance
                parts.append(
                    pd.DataFrame({"task": task, "metric": metric, "doc_id": np.arange(items),
                                  "score": np.asarray(score, dtype=np.float32)})
                )  # fmt: skip
                value = float(np.float64(parts[-1]["score"].astype(float).mean()))
                kind = "mc" if task == "quiz" else "long"
                row = {"train_key": key, "task": task, "metric": metric, "value": value,
                       "task_type": kind, "side": "target", "n": items, "plw": plw,
                       "effective_plw": plw, "masking": "none", "adapter": "full", "rank": 8,
                       "dataset": "d", "dataset_type": "short", "model": "m", "seed": s,
                       "alias": False}  # fmt: skip
                rows += [row, row | {"alias": True, "rank": 2}]
            other = parts[0].assign(metric="acc_raw", score=np.float32(0.0))
            cell = folder / "cells" / key
            cell.mkdir(parents=True)
            frame = pd.concat([*parts, other], ignore_index=True).astype({"doc_id": "int32"})
            frame.sample(frac=1, random_state=1).to_parquet(cell / "items.parquet", index=False)
    table = pd.DataFrame(rows)
    table.to_parquet(folder / "results.parquet", index=False)
    return table


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return folder, world(folder)


@pytest.fixture(scope="module")
def items(place):
    folder, table = place
    return read_items(study_rows(from_results(table)), folder)


def test_every_run_is_read_once_in_points(place, items):
    _, table = place
    assert items.scores_RI.shape == (3 * SEEDS, 2 * ITEMS)
    assert items.scores_RI.dtype == np.float32
    means = pd.Series(items.scores_RI[:, :ITEMS].mean(axis=1), index=items.runs["run"])
    expected = table[table["task"] == items.tasks[0]].groupby("train_key")["value"].first()
    np.testing.assert_allclose(means, 100 * expected.loc[means.index], atol=1e-3)
    assert items.items.groupby("task", observed=True)["binary"].first().to_dict() == {
        "quiz": True, "essay": False,
    }  # fmt: skip


def test_rows_without_a_score_say_what_was_answered_and_are_no_items(place, tmp_path):
    """A perplexity has no scores of single items; its rows hold the answers alone."""
    folder, table = place
    shutil.copytree(folder, tmp_path / "other")
    for file in (tmp_path / "other" / "cells").glob("*/items.parquet"):
        frame = pd.read_parquet(file).assign(output="said", loglikelihoods=[[-1.0]] * (3 * ITEMS))
        more = frame.assign(metric="perplexity", score=np.float32("nan"))
        pd.concat([frame, more]).to_parquet(file, index=False)
    with_answers = read_items(study_rows(from_results(table)), tmp_path / "other")
    without = read_items(study_rows(from_results(table)), folder)
    np.testing.assert_array_equal(with_answers.scores_RI, without.scores_RI)


def test_the_long_table_has_codes_and_every_score(items):
    long = items.long()
    assert len(long) == items.scores_RI.size
    assert [str(long[n].dtype) for n in ("run", "task", "item", "score")] == [
        "category", "category", "category", "float32",
    ]  # fmt: skip
    assert long.memory_usage(index=False)[["run", "task", "score"]].sum() <= 6 * len(long) + 2000
    one = long[(long["run"] == items.runs["run"][2]) & (long["item"] == "quiz:5")]
    column = items.items.index[(items.items["task"] == "quiz") & (items.items["doc_id"] == 5)][0]
    assert one["score"].item() == items.scores_RI[2, column]


def test_lost_files_and_scores_that_are_no_mean_are_told(tmp_path):
    table = world(tmp_path)
    (tmp_path / "cells" / "run0.0-0" / "items.parquet").unlink()
    table.loc[table["task"] == "essay", "value"] += 0.1
    found = read_items(study_rows(from_results(table)), tmp_path)
    assert found.tasks == ["quiz"]
    assert len(found.runs) == 3 * SEEDS - 1
    assert found.notes == (
        "1 runs have no items file; they are not in here.",
        "essay: its score is not the mean of its items; it is left out here.",
    )
    with pytest.raises(AnalysisError, match="no run under"):
        read_items(study_rows(from_results(table)), tmp_path / "elsewhere")
    with pytest.raises(AnalysisError, match=r"task=quizz: .* Did you mean 'quiz'"):
        found.of(tasks=["quizz"])


def dense(score_RI, *, seed=None, task="t", binary=True):
    runs = pd.DataFrame({"run": [f"r{i}" for i in range(len(score_RI))]})
    if seed is not None:
        runs["seed"] = seed
    table = pd.DataFrame({"task": task, "doc_id": np.arange(score_RI.shape[1]), "binary": binary})
    return Items(np.asarray(score_RI, dtype=np.float32), runs, table)


def split(items, first):
    which = pd.Series(np.arange(len(items.runs)) < first)
    return which, ~which


def test_two_runs_are_compared_by_the_paired_t_over_items():
    rng = np.random.default_rng(0)
    score = 100 * (rng.random((2, 300)) < rng.random(300))
    found = paired(dense(score), *split(dense(score), 1))
    gap = (score[0] - score[1]).astype(float)
    assert found.estimate == pytest.approx(gap.mean())
    unseen = 100**2 / 2 / 300**2  # half a change more, see test_crossed
    assert found.items.se == pytest.approx(np.sqrt(gap.var(ddof=1) / 300 + unseen))
    assert found.unpaired == pytest.approx(
        np.sqrt(sum(score[i].var(ddof=1) / 300 for i in range(2)))
    )
    assert found.runs is None
    assert found.best is found.items


def test_tasks_weigh_equally():
    score = np.array([[4.0] * 3 + [0.0] * 9, [0.0] * 12])
    score[0, 0] += 3
    items = dense(score, task=["a"] * 3 + ["b"] * 9)
    assert item_weights(items).sum() == pytest.approx(1)
    found = paired(items, *split(items, 1))
    assert found.estimate == pytest.approx((5 + 0) / 2)
    changed = (49 + 16 + 16) / 3 / 2 / 9  # half a change more in a, two of 100 points in b
    none = 2 * (100 / 9) ** 2
    seen = np.var([7, 4, 4], ddof=1) / 3
    assert found.items.se == pytest.approx(np.sqrt(seen + (changed + none) / 2) / 2)


@pytest.mark.parametrize(("run_sd", "item_sd"), [(2.0, 0.0), (1.0, 8.0), (0.0, 8.0)])
def test_intervals_over_runs_and_items_cover(run_sd, item_sd):
    rng, hits, seeds, count = np.random.default_rng(4), 0, 5, 40
    for _ in range(600):
        gap = 1.0 + rng.normal(0, run_sd, (seeds, 1)) + rng.normal(0, item_sd, count)
        easy = rng.normal(0, 20, count)
        a = easy + gap + rng.normal(0, 4, (seeds, count))
        b = easy + rng.normal(0, 4, (seeds, count))
        items = dense(np.vstack([a, b]), seed=[*range(seeds)] * 2)
        found = paired(items, *split(items, seeds)).both
        hits += found.low <= 1.0 <= found.high
    assert 0.925 < hits / 600 < 0.985


def test_different_seeds_are_not_paired():
    rng = np.random.default_rng(5)
    score = rng.normal(size=(6, 50)) + rng.normal(0, 5, (6, 1))
    same = paired(dense(score, seed=[0, 1, 2] * 2), *split(dense(score), 3))
    apart = paired(dense(score, seed=range(6)), *split(dense(score), 3))
    means = score.mean(axis=1)
    assert (same.seeds, apart.seeds) == (3, 0)
    gaps = means[:3] - means[3:]
    assert same.runs.se == pytest.approx(gaps.std(ddof=1) / np.sqrt(3), rel=1e-5)
    welch = np.sqrt(means[:3].var(ddof=1) / 3 + means[3:].var(ddof=1) / 3)
    assert apart.runs.se == pytest.approx(welch, rel=1e-5)


def test_the_binomial_model_finds_what_was_put_in():
    rng = np.random.default_rng(6)
    cells, seeds, count = 4, 8, 100
    hard, shift = rng.normal(0, 1.0, count), rng.normal(0, 0.4, (cells * seeds, 1))
    effect = np.repeat([0.0, 0.0, 0.5, 1.0], seeds)[:, None]
    own = np.repeat(rng.normal(0, 0.8, (cells, count)), seeds, axis=0)  # cell x item
    right = rng.random((cells * seeds, count)) < expit(hard + shift + effect + own)
    items = dense(100 * right)
    items.runs["plw"] = effect.ravel() + np.repeat([0, 0.1, 0, 0], seeds)
    model = item_model(items)
    assert model.fit.converged
    assert model.sd("item") == pytest.approx(1.0, abs=0.25)
    assert model.sd("run") == pytest.approx(0.4, abs=0.15)
    estimate, se = model.fit.fixef["cell[T.1]"], model.fit.se["cell[T.1]"]
    assert abs(estimate - 1.0) < 2.5 * se
    assert model.sd("cell:item") == pytest.approx(0.8, abs=0.15)
    expected = np.sqrt(2 * (0.4**2 / 8 + 0.8**2 / 100 + 1 / (0.2 * 800)))
    assert se == pytest.approx(expected, rel=0.25)
    assert item_model(items, most_rows=1600).items == 50


def test_what_is_not_right_or_wrong_has_no_binomial_model(items):
    with pytest.raises(AnalysisError, match="right or wrong"):
        item_model(items.of(tasks=["essay"]))


def test_a_leaderboard_with_items_speaks_of_other_items(place, items):
    frame = from_results(place[1])
    plain, wide = leaderboards(frame)[0], leaderboards(frame, items=items)[0]
    assert wide.noise == BOTH
    assert (wide.cells["se"] > plain.cells["se"]).all()
    # The added variance of a difference is that of the paired differences over items.
    quiz = items.of(tasks=["quiz"])
    cell = cell_names(quiz.runs)
    pair = paired(quiz, cell == "1", cell == "0")
    assert pair.both.se < pair.runs.se + pair.items.se


def test_one_seed_with_items_is_ranked_for_these_runs(tmp_path):
    table = world(tmp_path, seeds=1)
    frame = from_results(table)
    found = leaderboards(frame, items=read_items(study_rows(frame), tmp_path))[0]
    assert found.noise == "these runs, other items"
    assert found.winner is not None


def test_the_report_shows_items_where_they_are(place):
    folder, table = place
    study = fitted(table, from_results(table), folder=folder)
    made = section(study)
    names = [b.table.name for b in made.blocks if b.kind == "table"]
    assert names == ["noise", "paired", "item_models"]
    assert "other items" in leaderboard_section(study).blocks[-1].table.note
    assert section(fitted(table, from_results(table))) is None
