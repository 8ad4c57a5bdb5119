"""The frame: runs counted once, one metric a task, points, controls; tables of strangers."""

import numpy as np
import pandas as pd
import pytest

from ablate.results import record
from analysis.errors import AnalysisError
from analysis.table.frame import WP_EXPONENT, from_results, from_table, load, read, study_rows
from tests.fake_results import TASKS, fake_results


@pytest.fixture(scope="module")
def results():
    return fake_results()


@pytest.fixture(scope="module")
def frame(results):
    return from_results(results)


def test_every_run_enters_once(results, frame):
    keys = ["train_key", "task", "metric"]
    assert results.duplicated(keys).any()
    assert not frame.duplicated(keys).any()
    assert set(frame["train_key"]) == set(results["train_key"])
    assert not frame["alias"].any()
    assert any("another name of a run" in note for note in frame.attrs["notes"])


def test_a_run_stands_under_its_first_name_wherever_the_alias_is_in_the_table(results):
    turned = from_results(results.iloc[::-1])
    assert not turned["alias"].any()
    assert len(turned) == len(from_results(results))


def test_runs_are_counted_once_without_an_alias_column(results):
    without = from_results(results.drop(columns="alias"))
    assert len(without) == len(from_results(results))


def test_one_metric_a_task_is_kept(frame):
    bench = frame[frame["task"].isin(TASKS)]
    assert bench.groupby("task", observed=True)["metric"].nunique().max() == 1
    assert set(bench["metric"]) == {"acc", "chrf", "facts"}
    measures = frame[frame["task_type"] == "heldout"]
    assert set(measures["metric"]) == {"loss_completion", "loss_instruction"}


@pytest.mark.parametrize(
    ("metrics", "kept"),
    [
        (["acc,none", "acc_norm,none"], "acc_norm,none"),
        (["bleu", "chrf"], "chrf"),
        (["zeta", "beta"], "beta"),
        (["zeta", "exact_match"], "exact_match"),
    ],
)
def test_the_primary_metric(metrics, kept):
    rows = [
        {"train_key": "k", "task": "t", "metric": m, "value": 0.5, "task_type": "mc"}
        for m in metrics
    ]
    assert list(from_results(pd.DataFrame(rows))["metric"]) == [kept]


def test_scores_are_points_and_higher_is_better(results, frame):
    acc = frame[frame["metric"] == "acc"]
    np.testing.assert_allclose(acc["score"], 100 * acc["value"])
    np.testing.assert_allclose(acc["score_se"], 100 * acc["se"])
    assert set(acc["score_chance"]) == {25.0}
    in_points = from_results(results.assign(value=100 * results["value"]))  # a stock task's chrF
    np.testing.assert_allclose(in_points["score"], in_points["value"])
    low_is_good = results.assign(higher_is_better=False)
    turned = from_results(low_is_good)
    bench = turned["task"].isin(TASKS)
    np.testing.assert_allclose(turned.loc[bench, "score"], -frame.loc[bench, "score"])
    # Losses and measures are neither scaled nor turned.
    np.testing.assert_allclose(turned.loc[~bench, "score"], turned.loc[~bench, "value"])


def test_a_metric_that_is_in_points_stays_so_however_low():
    rows = [
        {"train_key": k, "task": "t", "metric": "bleu", "value": v, "task_type": "short"}
        for k, v in (("a", 0.2), ("b", 0.9))
    ]
    assert list(from_results(pd.DataFrame(rows))["score"]) == [0.2, 0.9]


def test_wp_is_the_effective_weight_to_the_power(results):
    frame = from_results(results.drop(columns="wp"))
    np.testing.assert_allclose(frame["wp"], frame["effective_plw"] ** 0.30103)
    bare = results.drop(columns=["wp", "effective_plw"]).assign(plw=0.1)
    asked = from_results(bare)
    masked = asked["masking"] == "instruction"
    assert masked.any()
    np.testing.assert_allclose(asked.loc[masked, "wp"], 0)
    np.testing.assert_allclose(asked.loc[~masked, "wp"], 0.5, atol=1e-6)


def test_rank_is_centred_and_zero_for_full_tuning(frame):
    assert frame.attrs["rank0"] == pytest.approx(np.sqrt(32))
    by_arm = frame.groupby(["adapter", "rank"], observed=True)["log2_rank"].unique().to_dict()
    assert by_arm["full", 4] == [0.0]
    assert by_arm["lora", 4] == pytest.approx([-0.5])
    assert by_arm["mora", 8] == pytest.approx([0.5])


def test_controls_and_the_base_are_marked_and_left_out_of_the_study(frame):
    assert frame["control"].value_counts().to_dict().keys() == {"", "sham", "placebo", "shuffled"}
    assert (frame.loc[frame["control"] == "placebo", "masking"] == "placebo").all()
    assert frame["is_base"].sum() == len(TASKS)
    rows = study_rows(frame)
    assert set(rows["control"]) == {""}
    assert not rows["is_base"].any()
    assert set(rows["task"]) == set(TASKS)
    assert set(frame.loc[frame["control"] == "shuffled", "shuffle_prompts"]) == {True}


def test_a_learning_rate_is_a_factor_only_where_it_varies_within_an_arm(results, frame):
    assert frame["lr"].nunique() > 1
    assert set(frame["rate"]) == {0.0}
    swept = results.assign(lr=np.where(results["seed"] == 0, 1e-3, 3e-3))
    assert set(from_results(swept)["rate"]) == {1e-3, 3e-3}


def test_at_weight_zero_all_modes_are_one(frame):
    rows = study_rows(frame)
    at_zero = rows[rows["wp"] == 0]
    assert set(at_zero["masking"]) == {"instruction"}  # `none` at 0 is an alias of it
    assert set(at_zero["mode"]) == {"none"}
    assert set(rows["mode"].cat.categories) == {"none", "boilerplate", "special"}
    curved = rows.groupby("mode", observed=True)["curved"].max().to_dict()
    assert curved == {"boilerplate": 0.0, "none": 1.0, "special": 0.0}


def test_task_groups_split_a_type_by_side_only_where_it_has_both(frame, results):
    assert set(study_rows(frame)["task_group"]) == {
        "mc source", "mc target", "short target", "long target",
    }  # fmt: skip
    one_sided = from_results(results[~results["task"].isin(["micro_arithmetic"])])
    assert set(study_rows(one_sided)["task_group"]) == {"mc", "short", "long"}


def test_rows_without_a_value_are_counted(results):
    holed = results.copy()
    holed.loc[holed.index[10:14], "value"] = np.nan
    notes = from_results(holed).attrs["notes"]
    assert "4 rows without a value were left out." in notes


def test_a_results_table_without_a_benchmark_says_so(results):
    with pytest.raises(AnalysisError, match="no trained run has a benchmark score"):
        study_rows(from_results(results[results["task_type"] == "measure"]))
    with pytest.raises(AnalysisError, match="no run has a score"):
        from_results(results.assign(value=np.nan))
    with pytest.raises(AnalysisError, match="no column train_key"):
        from_results(results.drop(columns="train_key"))


# --- files ---------------------------------------------------------------------------------------


def test_load_reads_a_folder_a_parquet_and_a_csv_alike(results, tmp_path):
    results.to_parquet(tmp_path / "results.parquet")
    results.to_csv(tmp_path / "results.csv", index=False)
    from_folder, from_csv = load(tmp_path), load(tmp_path / "results.csv")
    pd.testing.assert_series_equal(
        from_folder["score"], load(tmp_path / "results.parquet")["score"]
    )
    np.testing.assert_allclose(from_folder["score"], from_csv["score"])
    assert list(from_folder["run"]) == list(from_csv["run"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "there is no such file"),
        ("empty.csv", "", "cannot be read"),
        ("head.csv", "a,b\n", "has no rows"),
        ("broken.csv", "a,b\n1,2\n1,2,3,4\n", "cannot be read"),
        ("bytes.csv", b"\xff\xfe\x00\x9f,\n", "is no text in UTF-8"),
        ("broken.parquet", "not parquet", "cannot be read"),
        ("table.xlsx", "x", "must end in one of .parquet, .csv, .tsv"),
        (".", None, "there is no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path, name, content, message):
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
    with pytest.raises(AnalysisError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_strangers_table(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text("acc\tmethod \tplw\n0.5\ta\t0.1\n0.6\tb\t1\n\ta\t0\n0.5\ta\t0.1\n")
    frame = load(path, "acc")
    assert list(frame["score"]) == [0.5, 0.6, 0.5]
    assert list(frame.columns[:2]) == ["acc", "method"]
    np.testing.assert_allclose(frame["wp"], [0.5, 1.0, 0.5], atol=1e-6)
    assert frame.attrs["score"] == "acc"
    assert frame.attrs["notes"] == [
        "1 rows without a score were left out.",
        "1 rows repeat another row exactly; they were kept, check the table.",
    ]


@pytest.mark.parametrize(
    ("table", "score", "message"),
    [
        ({"acc": [1, 2], "name": ["a", "b"]}, "score", "columns of numbers are acc"),
        ({"acc": [1, 2]}, "ac", "Did you mean 'acc'"),
        ({"name": ["a"]}, "score", "columns of numbers are none"),
        ({"acc": ["0.5", "50%"]}, "acc", "'50%' is not a number"),
        ({"acc": [np.nan, np.inf]}, "acc", "every row is empty or infinite"),
        ({"acc": [1.0], " acc": [2.0]}, "acc", "2 columns are called 'acc'"),
        ({"acc": [1.0], "a\nb": [2.0], "a b": [2.0]}, "acc", "2 columns are called 'a b'"),
    ],
)
def test_a_strangers_table_that_will_not_do(table, score, message):
    with pytest.raises(AnalysisError, match=message):
        from_table(pd.DataFrame(table), score)


def test_headers_that_differ_in_blanks_alone_are_refused_in_a_file(tmp_path):
    (tmp_path / "t.csv").write_text("g,acc, g \na,1,b\n")
    with pytest.raises(AnalysisError, match="2 columns are called 'g'; rename them"):
        read(tmp_path / "t.csv")


def test_a_weight_of_a_strangers_table_that_is_no_prompt_loss_weight_is_a_number():
    frame = from_table(pd.DataFrame({"acc": [1.0, 2.0, np.inf], "plw": [10.0, 0.5, 1.0]}), "acc")
    assert "wp" not in frame
    assert frame.attrs["notes"] == [
        "1 rows with an infinite score were left out.",
        "plw is not between 0 and 1 in every row: it is taken as any other number.",
    ]


def test_a_column_called_score_beside_another_score_stays_what_it_is():
    table = pd.DataFrame({"acc": [1.0, 2.0], "score": ["a", "b"]})
    frame = from_table(table, "acc")
    assert frame["score"].tolist() == ["a", "b"]
    assert frame.attrs["names"] == ["acc"]
    assert from_table(table.drop(columns="score"), "acc").attrs["names"] == ["acc", "score"]


def test_lists_and_dictionaries_of_a_parquet_file_are_text(tmp_path):
    table = pd.DataFrame({"acc": [1.0, 2.0], "l": [[1, 2], None], "d": [{"a": 1}, {"a": 2}]})
    table.to_parquet(tmp_path / "t.parquet")
    frame = load(tmp_path / "t.parquet", "acc")
    assert frame["l"].isna().tolist() == [False, True]
    assert frame["l"].iloc[0] == "[1, 2]"
    assert frame["d"].nunique() == 2


def test_our_table_may_be_read_as_a_strangers(results, tmp_path):
    results.to_parquet(tmp_path / "results.parquet")
    frame = load(tmp_path, "train_seconds")
    assert frame["score"].equals(
        results["train_seconds"].dropna().reset_index(drop=True).rename("score")
    )


def test_the_scale_of_the_plw_is_one_constant_and_the_published_one():
    """Printed as 0.30103; records are made with log10 2, and no w_p differs by 1e-7."""
    assert WP_EXPONENT is record.WP_EXPONENT
    plw = np.array([1e-4, 5e-4, 1e-3, 0.01, 0.1, 0.242, 1.0])
    np.testing.assert_allclose(plw**WP_EXPONENT, plw**0.30103, rtol=1e-7)
    np.testing.assert_allclose(0.1**WP_EXPONENT, 0.5, rtol=1e-15)


@pytest.mark.parametrize(
    ("name", "done", "late"),
    [("State", "finished", ("crashed", "running")), ("status", "FINISHED", ("FAILED", "KILLED"))],
)
def test_runs_that_did_not_finish_are_no_rows(name, done, late):
    """States as W&B's and MLflow's exports write them; other words in such a column are levels."""
    table = pd.DataFrame({name: [done] * 3 + list(late), "acc": [0.5, 0.6, 0.7, 0.0, 0.0]})
    frame = from_table(table, "acc")
    assert frame["acc"].tolist() == [0.5, 0.6, 0.7]
    assert f"2 that did not finish ({', '.join(late)})" in str(frame.attrs["notes"])
    assert len(from_table(table.replace(late[0], "solid"), "acc")) == 5
    assert len(from_table(table[3:], "acc")) == 2


def test_a_table_in_another_encoding_is_told(tmp_path):
    (tmp_path / "t.csv").write_bytes("name,acc\ngröße,0.5\n".encode("utf-16"))
    with pytest.raises(AnalysisError, match="is no text in UTF-8; write it anew in UTF-8"):
        read(tmp_path / "t.csv")
