"""`ablate compare`: sides, flips, missing items, verdicts and exit status."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols

from ablate import cli
from analysis.compare.benchmarks import Asked
from analysis.compare.estimate import compared
from analysis.compare.matched import matched
from analysis.compare.rows import APART, BOTH, ITEMS, RUNS
from analysis.compare.settings import differing
from analysis.compare.sides import inside, paths
from analysis.compare.verdict import verdict
from analysis.errors import AnalysisError
from analysis.facade import LoadedStudy
from analysis.logs.log import Log, combined
from analysis.table.frame import read
from tests.fake_results import Truth, fake_results
from tests.stored import put

LOGS = Path(__file__).parents[1] / "logs"
LM_EVAL, INSPECT = LOGS / "lm_eval", LOGS / "inspect"


def log(name="m", seed="", levels=None, **tasks):
    """A run whose tasks are given as lists of scores; None is a score that it lacks."""
    rows = [
        (
            task,
            task.partition("_")[0],
            "acc",
            str(i),
            str(i),
            f"c{i // 4}",
            np.nan if s is None else s,
        )
        for task, scores in tasks.items()
        for i, s in enumerate(scores)
    ]
    columns = ["task", "group", "metric", "doc", "item", "cluster", "score"]
    items = pd.DataFrame(rows, columns=columns).astype({"score": float})
    return Log(name, name, Path(name), seed=seed, levels=levels or {}, items=items)


def judged(first, second, margin=None, **asked):
    runs = matched(first, second)
    found = compared(runs, Asked(**asked))
    return found, verdict(found, runs, margin)


def answers(count, share, seed):
    return (np.random.default_rng(seed).random(count) < share).astype(float)


def test_flips_are_counted_either_way_beside_mcnemar():
    a = [1.0] * 30 + [0.0] * 20
    b = [0.0] * 9 + [1.0] * 21 + [1.0] * 2 + [0.0] * 18
    found, said = judged([log(t=a)], [log(t=b)])
    row = found.overall
    assert (row.down, row.up) == (9, 2)
    assert row.mcnemar == pytest.approx(stats.binomtest(2, 11).pvalue)
    assert row.effect.estimate == pytest.approx(-14.0)
    assert row.scope == ITEMS
    assert said.status == 1
    assert said.word == "worse"
    assert "one run a side" in said.text


def test_the_unpaired_test_beside_it_is_lm_evals(tmp_path):
    """z = (acc - acc) / sqrt(se^2 + se^2), of the errors that lm-eval states."""
    a, b = answers(60, 0.7, 1), answers(60, 0.5, 2)
    row = judged([log(t=a)], [log(t=b)])[0].overall
    errors = [x.std(ddof=1) / math.sqrt(60) for x in (a, b)]
    z = (b.mean() - a.mean()) / math.hypot(*errors)
    assert row.p_apart == pytest.approx(2 * stats.norm.sf(abs(z)))


def test_missing_items_are_bounded_by_the_worst_and_the_best():
    a = [1.0, 0.0, 1.0, 1.0, None]
    b = [1.0, 1.0, None, 0.0, 1.0]
    row = judged([log(t=a)], [log(t=b)])[0].overall
    assert row.items == 3
    assert (row.missing.first, row.missing.second, row.missing.either) == (1, 1, 0)
    assert row.missing.low == pytest.approx(100 * ((1 + 1 + 0 + 0 + 1) - (1 + 0 + 1 + 1 + 1)) / 5)
    assert row.missing.high == pytest.approx(100 * ((1 + 1 + 1 + 0 + 1) - (1 + 0 + 1 + 1 + 0)) / 5)


def test_seeds_are_told_from_items():
    rng = np.random.default_rng(3)
    easy = rng.random(80)
    sides = [[log(name, str(s), t=(rng.random(80) < easy).astype(float)) for s in range(3)]
             for name in "ab"]  # fmt: skip
    found, said = judged(*sides)
    assert found.overall.scope == BOTH
    assert "for other seeds and other items" in said.text
    shuffled = judged(sides[0], sides[1][::-1])[0].overall
    assert shuffled.effect == found.overall.effect  # partners are found by their seeds


def test_runs_of_unknown_seeds_have_no_partner():
    sides = [[log(f"{name}{s}", t=answers(40, 0.5, 10 * i + s)) for s in range(3)]
             for i, name in enumerate("ab")]  # fmt: skip
    assert matched(*sides).partners == 0
    assert judged(*sides)[0].overall.scope == BOTH


def test_one_seed_a_condition_samples_no_seeds():
    sides = [[log(levels={"arm": name, "data": d}, seed="0", t=answers(40, 0.5, i))
              for i, d in enumerate("xyz")] for name in "ab"]  # fmt: skip
    found, said = judged(*sides)
    assert found.overall.scope == ITEMS
    assert "one seed a condition" in said.text
    with pytest.raises(AnalysisError, match="no run of A stands under the conditions"):
        matched(sides[0], [log(levels={"arm": "b", "data": "other"}, t=[1.0, 0.0]) for _ in "xy"])


def test_subtasks_are_one_benchmark_and_may_be_its_clusters():
    tasks = {f"g_{i}": answers(20 + i, 0.5, i) for i in range(6)}
    other = {f"g_{i}": answers(20 + i, 0.5, 50 + i) for i in range(6)}
    (row,) = judged([log(**tasks)], [log(**other)])[0].rows
    every = (
        np.concatenate(list(other.values())).mean() - np.concatenate(list(tasks.values())).mean()
    )
    assert (row.name, row.items) == ("g", 135)
    assert row.effect.estimate == pytest.approx(100 * every)
    clustered = judged([log(**tasks)], [log(**other)], cluster="task")[0].overall
    assert clustered.clusters == 6
    assert clustered.effect.df == 5
    fours = judged([log(**tasks)], [log(**other)], cluster="passage")[0].overall
    assert fours.clusters == sum(-(-(20 + i) // 4) for i in range(6))


def test_benchmarks_weigh_equally_and_each_is_judged_by_itself():
    a = {"x": answers(400, 0.9, 1), "y": answers(50, 0.5, 2)}
    b = {"x": answers(400, 0.6, 3), "y": answers(50, 0.5, 2)}
    found, said = judged([log(**a)], [log(**b)])
    gaps = [100 * (b[n].mean() - a[n].mean()) for n in "xy"]
    assert found.overall.effect.estimate == pytest.approx(np.mean(gaps))
    assert said.worse == ("x",)
    swapped, other = judged([log(**b)], [log(**a)])
    assert other.status == 0
    assert swapped.overall.effect.estimate == pytest.approx(-np.mean(gaps))


def test_a_margin_turns_the_burden_around():
    """With few items nothing is told apart, and nothing is shown either."""
    a, b = answers(40, 0.5, 4), answers(40, 0.5, 5)
    assert judged([log(t=a)], [log(t=b)])[1].status == 0
    shy = judged([log(t=a)], [log(t=b)], margin=1.0)[1]
    assert (shy.word, shy.status) == ("not shown to be no worse", 1)
    many = answers(4000, 0.5, 6)
    few = many.copy()
    few[:10] = 1 - few[:10]
    sure = judged([log(t=many)], [log(t=few)], margin=1.0)[1]
    assert (sure.word, sure.status) == ("equivalent", 0)
    bad = judged([log(t=answers(500, 0.9, 7))], [log(t=answers(500, 0.5, 8))], margin=5.0)[1]
    assert (bad.word, bad.status) == ("worse", 1)


def test_scores_without_items_are_compared_over_runs_or_by_their_errors():
    def stated(name, seed, value, se=math.nan):
        scores = pd.DataFrame([("t", "t", "acc", value, se, 100)],
                              columns=["task", "group", "metric", "value", "se", "n"])  # fmt: skip
        return Log(name, name, Path(name), seed=seed, scores=scores)

    first = [stated("a", str(s), 0.5 + 0.01 * s) for s in range(4)]
    second = [stated("b", str(s), 0.55 + 0.012 * s) for s in range(4)]
    row = judged(first, second)[0].overall
    peer = stats.ttest_rel([0.55 + 0.012 * s for s in range(4)], [0.5 + 0.01 * s for s in range(4)])
    assert row.scope == RUNS
    assert row.effect.p == pytest.approx(peer.pvalue)
    row = judged([stated("a", "", 0.5, 0.03)], [stated("b", "", 0.6, 0.04)])[0].overall
    assert row.scope == APART
    assert row.effect.se == pytest.approx(5.0)
    with pytest.raises(AnalysisError, match="nothing tells the error"):
        judged(first[:1], second[:1])


def test_other_documents_are_not_paired_by_their_number():
    a, b = log(t=[1.0, 0.0, 1.0]), log(t=[1.0, 1.0, 1.0])
    b.items["item"] += "x"
    with pytest.raises(AnalysisError, match=r"share none of its documents.*--by-id"):
        judged([a], [b])
    found, _ = judged([a], [b], by_id=True)
    assert found.overall.items == 3
    assert "paired by number" in found.notes[0]


def run(capsys, *words):
    status = cli.main(["compare", *map(str, words)])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_results_of_lm_eval_are_compared(capsys, tmp_path):
    sides = LM_EVAL / "toy__base", LM_EVAL / "toy__tuned"
    status, out, _ = run(capsys, *sides, "--format", "json", "--flips", tmp_path / "flips.csv")
    found = json.loads(out)
    assert status == found["status"] == 0
    names = [(row["name"], row["items"], row["missing_a"]) for row in found["benchmarks"]]
    assert names == [("toy", 16, 2), ("toy_sums", 8, 0)]
    assert {s["setting"] for s in found["settings"]} >= {"config.model_args.pretrained"}
    assert "one run a side" in found["text"]
    flips = pd.read_csv(tmp_path / "flips.csv")
    assert len(flips) == sum(row["down"] + row["up"] for row in found["benchmarks"])
    acc = [*sides, "--metric", "acc", "--cluster", "topic"]
    status, out, _ = run(capsys, *acc)
    assert status == 1
    assert "Not compared: toy_sums (has exact_match,strict-match," in out
    status, out, _ = run(capsys, *acc, "--benchmarks", "toy")
    assert status == 0
    assert "verdict:" in out


def test_a_table_of_runs_is_compared_by_its_levels(capsys):
    status, out, _ = run(capsys, "adapter=full", "adapter=lora", "--in", LOGS / "mlruns",
                         "--metric", "acc", "--format", "json")  # fmt: skip
    found = json.loads(out)
    assert status == 0
    assert found["overall"]["sampled"] == RUNS
    assert found["overall"]["estimate"] == pytest.approx(5.5)


def test_a_report_of_a_trackers_own_files_asks_for_their_table(capsys):
    status = cli.main(["report", str(LOGS / "mlruns")])
    err = capsys.readouterr().err
    assert (status, err.count("\n")) == (2, 1)
    assert "mlflow.search_runs().to_csv(FILE)" in err


def grid(rates=(1e-4, 1e-3), seeds=range(4), **columns):
    """A table of runs as W&B exports it: two arms, whose score depends far more on the rate."""
    rng = np.random.default_rng(0)
    rows = [
        {"Name": f"{arm}-{lr}-{seed}", "adapter": arm, "lr": lr, "seed": seed, "loss": rng.random(),
         "acc": 0.4 + 0.1 * rates.index(lr) + 0.02 * (arm == "lora") + rng.normal(0, 0.005)}
        for arm in ("full", "lora") for lr in rates for seed in seeds
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**columns)


def sides_of(table, path, *sides):
    table.to_csv(path, index=False)
    return inside(path, *sides, metrics=("acc",))


def test_settings_that_vary_within_the_sides_of_a_table_are_their_conditions(tmp_path):
    """As least squares have it: the mean difference beside the rates' own, of n - c degrees."""
    table = grid()
    runs = sides_of(table, tmp_path / "runs.csv", "adapter=full", "adapter=lora")
    assert (runs.partners, runs.conditions) == (8, 2)
    found = compared(runs, Asked("acc"))
    wide = table.pivot(index=["lr", "seed"], columns="adapter", values="acc").reset_index()
    peer = ols("I(100 * (lora - full)) ~ C(lr, Sum)", wide).fit()
    effect = found.overall.effect
    assert effect.estimate == pytest.approx(peer.params["Intercept"])
    assert (effect.se, effect.df) == (pytest.approx(peer.bse["Intercept"]), peer.df_resid)
    assert "under the 2 conditions" in verdict(found, runs).text
    table[table["adapter"] == "full"].to_csv(tmp_path / "a.csv")
    table[table["adapter"] == "lora"].to_csv(tmp_path / "b.csv")
    both = paths(*(str(tmp_path / f) for f in ("a.csv", "b.csv")), cluster="", metrics=("acc",))
    assert both.conditions == 2


def test_one_run_a_condition_of_a_table_tells_no_error(tmp_path):
    table = grid(seeds=(0,)).drop(columns="seed")
    runs = sides_of(table, tmp_path / "runs.csv", "adapter=full", "adapter=lora")
    with pytest.raises(
        AnalysisError, match=r"one run a side under each of the 2 conditions \(lr\)"
    ):
        compared(runs, Asked("acc"))


def test_where_a_run_was_carried_out_is_no_condition(tmp_path):
    """W&B's columns of its own, and whatever varies where the seeds are pairs already."""
    hosts = [f"h{i}" for i in np.random.default_rng(3).permutation([0, 1] * 8)]
    table = grid().assign(Hostname=hosts, User=hosts[::-1])
    runs = sides_of(table, tmp_path / "a.csv", "adapter=full", "adapter=lora")
    assert (runs.partners, runs.conditions) == (8, 2)
    table = grid(rates=(1e-3,)).assign(cluster=hosts[:8])
    runs = sides_of(table, tmp_path / "b.csv", "adapter=full", "adapter=lora")
    assert (runs.partners, runs.conditions, runs.notes) == (4, 1, ())


def test_runs_that_cannot_be_paired_by_seed_say_so(tmp_path):
    table = grid(rates=(1e-3,))
    again = pd.concat([table, table[-1:].assign(Name="again", acc=0.43)])
    runs = sides_of(again, tmp_path / "a.csv", "adapter=full", "adapter=lora")
    assert (runs.partners, len(runs.second)) == (0, 5)
    assert runs.notes == ("Runs are not paired by seed: B has seed 3 2 times.",)
    moved = table.assign(seed=table["seed"] + 3 * (table["adapter"] == "lora"))
    runs = sides_of(moved, tmp_path / "b.csv", "adapter=full", "adapter=lora")
    peer = stats.ttest_ind(*(100 * own["acc"] for _, own in moved.groupby("adapter")),
                           equal_var=False)  # fmt: skip
    assert compared(runs, Asked("acc")).overall.effect.p == pytest.approx(peer.pvalue)
    assert "one seed alone is on both sides" in runs.notes[0]


@pytest.mark.parametrize(
    ("column", "values", "sides"),
    [
        ("big", (9007199254740992, 9007199254740993), None),
        ("flag", (True, False), ("flag=true", "flag=false")),
        ("layers", ("[1, 2]", "[3, 4]"), ("layers=[1,2]", "layers=[3, 4]")),
        ("path", (f"/{'x' * 70}/a", f"/{'x' * 70}/b"), None),
        ("=cmd", (1, 2), None),
        ("rate", ("1e-4", "0.001"), ("rate=0.0001", "rate=1e-3")),
    ],
)
def test_levels_of_a_table_are_told_apart(tmp_path, column, values, sides):
    table = grid(rates=(1e-3,)).drop(columns="adapter")
    table[column] = [values[0]] * 4 + [values[1]] * 4
    first, second = sides or [f"{column}={value}" for value in values]
    if column.startswith("="):
        with pytest.raises(AnalysisError, match="levels are named as COLUMN=VALUE"):
            sides_of(table, tmp_path / "runs.csv", first, second)
        return
    runs = sides_of(table, tmp_path / "runs.csv", first, second)
    assert [log.name[:4] for log in (*runs.first, *runs.second)] == ["full"] * 4 + ["lora"] * 4
    told = {name: row for name, *row in differing(runs.first, runs.second)}
    assert told[column][0] != told[column][1]


@pytest.mark.parametrize(
    ("name", "lower"),
    [
        ("eval/loss", True), ("mse", True), ("val/CER", True), ("neg_mean_squared_error", False),
        ("valLoss", True), ("brier_score", True), ("error_rate", True), ("val-mlogloss", True),
        ("answer", False), ("cancer/acc", False), ("eval/power", False), ("apples", False),
        ("error_correction_acc", False), ("loss_of_function/accuracy", False),
    ],
)  # fmt: skip
def test_the_name_of_a_column_says_whether_less_is_better(tmp_path, name, lower):
    table = grid(rates=(1e-3,)).rename(columns={"acc": name})
    table.to_csv(tmp_path / "runs.csv", index=False)
    runs = inside(tmp_path / "runs.csv", "adapter=full", "adapter=lora", metrics=(name,))
    found = compared(runs, Asked(name)).overall
    assert (found.effect.estimate < 0) == found.turned == lower
    shares = not lower or name in ("val/CER", "error_rate")  # a loss below 1 is none
    assert (found.unit == "points") == shares


@pytest.mark.parametrize(
    ("name", "words", "worse"),
    [
        ("acc", (), False), ("acc", ("--higher-is-better=false",), True),
        ("gap", (), False), ("gap", ("--higher-is-better=false",), True),
        ("loss", (), True), ("loss", ("--higher-is-better", "true"), False),
    ],
)  # fmt: skip
def test_which_way_a_metric_is_better_may_be_said(tmp_path, capsys, name, words, worse):
    """B has more of it, by four standard deviations."""
    table = grid(rates=(1e-3,)).drop(columns="loss").rename(columns={"acc": name})
    path = tmp_path / "runs.csv"
    table.to_csv(path, index=False)
    sides = ["adapter=full", "adapter=lora", "--in", str(path), "--metric", name]
    assert cli.main(["compare", *sides, *words]) == worse
    told = capsys.readouterr().out
    assert ("signs are turned" in told) == worse
    assert ("as --higher-is-better says" in told) == (worse and bool(words))


def test_one_direction_is_not_for_several_metrics(tmp_path):
    table = grid(rates=(1e-3,)).rename(
        columns=lambda n: f"metrics.{n}" if n in ("acc", "loss") else n
    )
    table.to_csv(tmp_path / "runs.csv", index=False)
    runs = inside(tmp_path / "runs.csv", "adapter=full", "adapter=lora", metrics=())
    with pytest.raises(AnalysisError, match="benchmarks are judged by loss, acc; name one"):
        compared(runs, Asked(higher_is_better=True))


def results(path):
    """A folder of results with the items of every run's first task."""
    table = fake_results(plws=(0.0,), controls=False)
    table = table[table["task_type"] == "mc"]
    path.mkdir()
    table.to_parquet(path / "results.parquet")
    rng = np.random.default_rng(0)
    for key, own in table.groupby("train_key"):
        scores = own.to_dict("records")
        rows = [(s["task"], s["metric"], i, float(rng.random() < s["value"])) for s in scores
                for i in range(30)]  # fmt: skip
        frame = pd.DataFrame(rows, columns=["task", "metric", "doc_id", "score"])
        known = [
            {n: s[n] for n in ("task", "metric", "value", "task_type")}
            | {"higher_is_better": True, "unit": "fraction", "se": 0.1, "n": 30, "score_key": "k"}
            for s in scores
        ]
        put(path, str(key), items=frame, scores=known, config={"seed": int(own["seed"].iloc[0])})
    return path, table


def test_arms_cells_and_folders_of_results_are_compared(capsys, tmp_path):
    folder, table = results(tmp_path / "out")
    sides = ["adapter=full", "adapter=lora,rank=8"]
    status, out, err = run(capsys, *sides, "--in", folder, "--format", "json")
    assert status in (0, 1), err
    found = json.loads(out)
    assert found["overall"]["sampled"] == BOTH
    assert len(found["a"]["runs"]) == len(found["b"]["runs"]) > 1
    keys = table["train_key"].astype(str).unique()[:2]
    status, out, _ = run(capsys, *(folder / "cells" / key for key in keys), "--format", "json")
    assert json.loads(out)["overall"]["sampled"] == ITEMS
    inside = run(capsys, *keys, "--in", folder, "--format", "json")[1]
    assert json.loads(inside)["overall"] == json.loads(out)["overall"]
    status, out, _ = run(capsys, folder, folder, "--format", "json")
    same = json.loads(out)
    assert (status, same["overall"]["estimate"]) == (0, 0.0)
    assert len(same["a"]["runs"]) == table["train_key"].nunique()


def without_items(path, plws):
    """Two arms of one data set on two benchmarks, three seeds a cell, no scores of items."""
    truth = Truth(cell_sd=4.0)
    table = fake_results(seeds=3, plws=plws, controls=False, truth=truth)
    table = table[(table["task_type"] == "mc") & (table["side"] == "source")]
    table = table[(table["dataset"] == "micro") & table["adapter"].isin(["lora", "mora"])]
    path.mkdir()
    table[table["rank"] == 8].to_parquet(path / "results.parquet")
    for key, own in table[~table["alias"]].groupby("train_key"):
        known = [
            {n: s[n] for n in ("task", "metric", "value", "task_type")}
            | {"higher_is_better": True, "unit": "fraction", "se": None, "n": 30, "score_key": "k"}
            for s in own.to_dict("records")
        ]
        folder = put(path, str(key), scores=known, config={"seed": int(own["seed"].iloc[0])})
        (folder / "items.parquet").unlink()
    return path


@pytest.mark.parametrize("plws", [(0.0,), (0.0, 0.1, 1.0)])
def test_both_comparisons_of_arms_agree_where_they_answer_one_question(tmp_path, plws):
    """`study.compare` samples conditions, `ablate compare` has them as they are.

    The peers: t over the means of conditions, and the intercept of the pairs' least-squares fit
    with a column for every condition. Of one condition both are the paired t over seeds.
    """
    folder = without_items(tmp_path / "out", plws)
    study = LoadedStudy(folder, read(folder), AnalysisError("not fitted"), {})
    (line,) = study.compare("mora r8", "lora r8").to_dict("records")
    runs = inside(folder, "lora r8", "mora r8", metrics=())
    found = compared(runs, Asked()).overall
    assert found.scope == RUNS
    own = study.results.query("not alias")
    own = own.assign(condition=own["masking"] + own["plw"].astype(str))
    mean = own.groupby(["adapter", "condition", "seed"])["value"].mean() * 100
    pairs = (mean["mora"] - mean["lora"]).rename("gap").reset_index()
    over = pairs.groupby("condition")["gap"].mean()
    assert (len(pairs), runs.conditions) == (3 * len(over), len(over))
    assert line["estimate"] == pytest.approx(pairs["gap"].mean())
    assert found.effect.estimate == pytest.approx(pairs["gap"].mean())
    fixed = ols("gap ~ C(condition, Sum)" if len(over) > 1 else "gap ~ 1", pairs).fit()
    low, high = fixed.conf_int().loc["Intercept"]
    assert (found.effect.low, found.effect.high) == pytest.approx((low, high))
    if len(over) > 1:
        low, high = stats.ttest_1samp(over, 0).confidence_interval()
        assert high - low > 2 * (found.effect.high - found.effect.low)
    assert (line["low"], line["high"]) == pytest.approx((low, high), rel=1e-4)
    said = verdict(compared(runs, Asked()), runs).text
    assert ("under the 5 conditions that both ran" in said) == (len(over) > 1)


def test_a_folder_of_logs_gives_a_report(capsys, tmp_path):
    out = tmp_path / "page"
    assert cli.main(["report", str(LM_EVAL), "--out", str(out)]) == 0
    assert f"report: {out}" in capsys.readouterr().out.replace("\n  ", " ")
    scores = pd.read_csv(out / "tables" / "scores.csv").set_index(["model", "benchmark"])
    assert len(scores) == 4
    toy = scores.loc[("toy/base", "toy")]
    assert toy["low"] < toy["score"] < toy["high"]
    pairs = pd.read_csv(out / "tables" / "pairs.csv")
    best = scores["score"].groupby("model").mean().idxmax()
    assert best not in set(pairs["model"])
    gap = pairs.set_index("benchmark").loc["mean", "estimate"]
    status = cli.main(["compare", str(LM_EVAL / best.replace("/", "__")), "--format", "json",
                       str(LM_EVAL / pairs["model"][0].replace("/", "__"))])  # fmt: skip
    assert status == 0
    assert json.loads(capsys.readouterr().out)["overall"]["estimate"] == pytest.approx(gap)
    assert "McNemar" in (out / "index.html").read_text()
    assert cli.main(["report", str(LM_EVAL), "--formula", "a ~ b"]) == 2
    assert "--formula: belongs to tables" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["one"], "takes two sides"),
        (["nowhere", "there"], "no such file or folder"),
        (["a", "b", "--in", "nowhere"], "no such file or folder"),
        ([LM_EVAL, LM_EVAL, "--metric", "ac"], "Did you mean"),
        ([LM_EVAL / "toy__base", LM_EVAL / "toy__tuned", "--cluster", "nothing"], "no document of"),
        ([LM_EVAL / "toy__base", LOGS / "inspect" / "base"], "share no benchmark"),
        (["x", "y", "--margin", "0"], "must be a number above 0"),
    ],
)
def test_a_wrong_request_is_one_line(capsys, words, said):
    status, out, err = run(capsys, *words)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1
    assert out == ""


def test_its_help_says_what_it_does(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for option in ("--in", "--metric", "--cluster", "--margin", "--by-id", "--flips", "--format"):
        assert option in out
    assert out.count("  ablate compare") == 3


def by_metric(log_, task, metric):
    """The log with another metric of one task."""
    log_.items.loc[log_.items["task"] == task, "metric"] = metric
    return log_


def test_a_benchmark_that_is_not_compared_is_named_and_nothing_passes():
    """A gate on acc would pass though gsm8k, which has exact_match alone, got far worse."""
    same = answers(400, 0.6, 1)
    sides = [by_metric(log(easy=same, gsm8k=answers(100, p, 2)), "gsm8k", "exact_match")
             for p in (0.9, 0.1)]  # fmt: skip
    found, said = judged([sides[0]], [sides[1]], margin=2.0, metric="acc")
    assert [one.name for one in found.left_out] == ["gsm8k"]
    assert "Not compared: gsm8k (has exact_match, no acc)." in found.notes
    assert (said.word, said.status) == ("equivalent", 1)
    assert "gsm8k could not be compared" in said.text
    asked = judged([sides[0]], [sides[1]], margin=2.0, metric="acc", only=("easy",))
    assert (asked[0].left_out, asked[1].status) == ((), 0)
    with pytest.raises(AnalysisError, match=r"--benchmarks=gsm: .* Did you mean 'gsm8k'"):
        judged([sides[0]], [sides[1]], only=("gsm",))


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ([{"x": 1}], [{"x": 1, "y": 1}], "only B has it"),
        ([{"x": 1, "y": 1}, {"x": 1}], [{"x": 1, "y": 1}] * 2, "1 of 2 runs of A lack it"),
        ([{"x": 1}], [{"x": 1, "y": 2}] * 2, "only B has it"),
    ],
)
def test_what_a_run_lacks_is_no_pass(first, second, reason):
    sides = [
        [log(f"{letter}{i}", **{n: answers(40, 0.5, k) for n, k in one.items()})
         for i, one in enumerate(side)]
        for letter, side in (("a", first), ("b", second))
    ]  # fmt: skip
    found, said = judged(*sides)
    assert [(one.name, one.reason) for one in found.left_out] == [("y", reason)]
    assert said.status == 1


def test_other_metrics_on_the_two_sides_are_told():
    sides = [by_metric(log(x=answers(20, 0.5, 1), t=answers(20, 0.5, 1)), "t", m)
             for m in ("acc", "f1")]  # fmt: skip
    found, _ = judged(sides[:1], sides[1:])
    assert [one.reason for one in found.left_out] == ["A has acc, B has f1"]
    alone = [by_metric(log(t=answers(20, 0.5, 1)), "t", m) for m in ("acc", "f1")]
    with pytest.raises(AnalysisError, match=r"A has t \[acc\], B has t \[f1\]"):
        judged(alone[:1], alone[1:])


def test_what_a_log_says_of_itself_is_said(tmp_path):
    """A rerun in one folder: the later log counts, in the report's words."""
    first, second = (log(t=answers(20, 0.5, s)) for s in (1, 2))
    (twice,) = combined([first, second])
    notes = judged([twice], [log(t=answers(20, 0.5, 3))])[0].notes
    assert notes == ("A: " + twice.notes[0],)
    assert "logged more than once; the last log counts" in notes[0]
