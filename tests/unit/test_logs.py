"""Logs of other programs, read: files that these programs wrote themselves (tests/logs)."""

import json
import math
import shutil
import sqlite3
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ablate.experiment import upkeep
from analysis.compare.benchmarks import Asked
from analysis.compare.estimate import compared
from analysis.compare.sides import paths
from analysis.errors import AnalysisError
from analysis.logs import inspect_ai, trackers
from analysis.logs.read import is_logs, read_logs, read_side
from tests.unit.test_upkeep import KEY, folder, score

LOGS = Path(__file__).parents[1] / "logs"
LM_EVAL, INSPECT = LOGS / "lm_eval", LOGS / "inspect"


def means(log):
    return log.items.groupby(["task", "metric"])["score"].mean()


def test_the_items_of_lm_eval_average_to_what_it_states():
    (log,) = read_logs(LM_EVAL / "toy__base")
    assert log.model == "toy/base"
    assert set(log.items["group"]) == {"toy", "toy_sums"}
    stated = log.scores.set_index(["task", "metric"])
    assert set(stated.index) == set(means(log).index)
    assert {"exact_match,strict-match", "exact_match,flexible-extract"} <= set(log.scores["metric"])
    for name, mean in means(log).items():
        assert mean == pytest.approx(stated.loc[name, "value"])
        scores = log.items.set_index(["task", "metric"]).loc[name, "score"]
        if name[1].startswith("acc"):  # its own error: sd / sqrt(n)
            error = scores.std(ddof=1) / np.sqrt(len(scores))
            assert error == pytest.approx(stated.loc[name, "se"])


def test_documents_that_were_numbered_anew_are_the_same_items():
    base, tuned = (read_logs(LM_EVAL / name)[0].items for name in ("toy__base", "toy__tuned"))
    own = [t[(t["task"] == "toy_north") & (t["metric"] == "acc,none")] for t in (base, tuned)]
    assert len(own[0]) == 8
    assert len(own[1]) == 9
    shared = own[0].merge(own[1], on="item", suffixes=("", "_tuned"))
    assert len(shared) == 8
    assert (shared["doc"].astype(int) + 1 == shared["doc_tuned"].astype(int)).all()


def test_a_file_of_samples_alone_is_read(tmp_path):
    (file,) = (LM_EVAL / "toy__base").glob("samples_toy_north_*")
    shutil.copy(file, tmp_path)
    (log,) = read_logs(tmp_path)
    assert set(log.items["task"]) == {"toy_north"}
    assert log.model == tmp_path.name


def test_a_file_that_was_cut_off_is_told(tmp_path):
    (file,) = (LM_EVAL / "toy__base").glob("samples_toy_north_*")
    (tmp_path / file.name).write_text(file.read_text()[:-40])
    with pytest.raises(AnalysisError, match="line 8 is no JSON object"):
        read_logs(tmp_path)


def test_of_two_results_of_one_task_the_later_counts(tmp_path):
    shutil.copytree(LM_EVAL / "toy__base", tmp_path / "model")
    for file in (LM_EVAL / "toy__tuned").glob("*"):
        text = file.read_text().replace("toy/tuned", "toy/base")
        (tmp_path / "model" / file.name).write_text(text)
    (log,) = read_logs(tmp_path)
    assert (log.items["task"] == "toy_north").sum() == 18  # two metrics of nine documents
    assert "logged more than once" in log.notes[0]


@pytest.mark.parametrize("model", ["base", "tuned"])
def test_logs_of_inspect_are_read(model):
    (log,) = read_logs(INSPECT / model)
    assert log.model == f"mockllm/{model}"
    assert log.config["generate.temperature"] == "0.5"
    assert log.notes == ()
    assert set(log.items["metric"]) == {"match", "includes"}
    assert (log.items.groupby("metric").size() == 8).all()


def test_of_several_epochs_the_mean_counts():
    (file,) = (INSPECT / "tuned").glob("*.json")
    found = json.loads(file.read_text())
    right = [s["scores"]["match"]["value"] == "C" for s in found["samples"]]
    assert len(right) == 16
    (log,) = read_logs(INSPECT / "tuned")
    items = log.items[log.items["metric"] == "match"]
    assert items["score"].mean() == pytest.approx(np.mean(right))
    assert set(items["score"]) <= {0.0, 0.5, 1.0}


def test_both_forms_of_inspect_name_an_item_alike():
    base, tuned = (read_logs(INSPECT / name)[0].items for name in ("base", "tuned"))
    assert set(base["item"]) == set(tuned["item"])


def test_an_archive_without_a_header_is_told(tmp_path):
    file = tmp_path / "x.eval"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("samples/1_epoch_1.json", "{}")
    with pytest.raises(AnalysisError, match="it has no header"):
        inspect_ai.read_archive(file, "")
    file.write_bytes(b"nothing")
    with pytest.raises(AnalysisError, match="cannot be read as a log of Inspect"):
        read_logs(file)


def test_what_is_exported_as_every_eval_ever_comes_back(tmp_path):
    own = score("s", task_type="mc")
    store = folder(tmp_path / "out", **{KEY: [own]})
    upkeep.export(store.out, tmp_path / "to", "every_eval_ever")
    (log,) = read_logs(tmp_path / "to")
    (cell,) = read_logs(store.folder(KEY))
    assert log.model == f"org/tiny-{KEY}"
    columns = ["task", "metric", "doc", "score"]
    pd.testing.assert_frame_equal(log.items[columns], cell.items[columns])
    stated = log.scores.set_index("task")
    assert stated.loc["quiz", ["value", "se", "n"]].tolist() == [own["value"], own["se"], own["n"]]
    assert log.config["rank"] == "2"


def eee(path, score=0.5, lines=(), when="1", about=None, details=None, **result):
    """Write a file of Every Eval Ever's schema 0.3 below `path`, and one of its items."""
    folder = path / "data" / "bench" / "org" / "m"
    folder.mkdir(parents=True, exist_ok=True)
    name = str(uuid.UUID(int=len(list(folder.iterdir())) ^ 0xFF))
    one = {
        "evaluation_name": "quiz", "source_data": {"dataset_name": "quiz"},
        "metric_config": {"metric_id": "accuracy", "lower_is_better": False,
                          "min_score": 0.0, "max_score": 1.0},
        "score_details": {"score": score, **(details or {})},
    } | result  # fmt: skip
    found = {
        "schema_version": "0.3.0", "evaluation_id": f"bench/m/{when}",
        "evaluation_timestamp": when, "retrieved_timestamp": "9",
        "model_info": {"id": "org/m", "name": "m"}, "evaluation_results": [one],
    } | (about or {})  # fmt: skip
    if lines:
        place = folder / f"{name}_samples.jsonl"
        place.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        found.setdefault(
            "detailed_evaluation_results", {"file_path": place.relative_to(path).as_posix()}
        )
    (folder / f"{name}.json").write_text(json.dumps(found))
    return folder / f"{name}.json"


def line(number, score, **more):
    return {
        "evaluation_name": "quiz", "sample_id": number, "sample_hash": f"h{number}",
        "evaluation": {"score": score, "is_correct": score == 1},
    } | more  # fmt: skip


def test_of_two_files_of_every_eval_ever_the_later_evaluation_counts(tmp_path):
    """Their names are random; the first by name is the later one here."""
    eee(tmp_path, 0.5, when="1770000002.5")
    eee(tmp_path, 0.9, when="1770000001.5")
    (log,) = read_logs(tmp_path)
    assert log.scores["value"].tolist() == [0.5]
    assert "more than once" in log.notes[0]


def test_items_of_every_eval_ever_are_found_and_belong_to_their_result(tmp_path):
    """As the converter of Inspect writes them: below the root, under the name of the data."""
    lines = [line(1, 1.0, evaluation_name="org/arc"), line(2, 0.0, evaluation_name="org/arc")]
    lines += [line(2, 1.0, evaluation_name="org/arc", metadata={"epoch": 2})]
    own = {"evaluation_name": "choice", "source_data": {"dataset_name": "ai2_arc"},
           "metric_config": {"evaluation_description": "accuracy"}}  # fmt: skip
    stated = {"detailed_evaluation_results": {"file_path": "instance_level_data/a:b.jsonl"}}
    file = eee(tmp_path, lines=lines, about=stated, **own)
    (tmp_path / "instance_level_data").mkdir()
    beside = file.with_name(f"{file.stem}_samples.jsonl")
    beside.rename(tmp_path / "instance_level_data" / "a:b.jsonl")
    (log,) = read_logs(file)
    assert log.items[["task", "metric", "item", "score"]].to_numpy().tolist() == [
        ["ai2_arc choice", "accuracy", "h1", 1.0], ["ai2_arc choice", "accuracy", "h2", 0.5],
    ]  # fmt: skip
    assert log.scores["task"].tolist() == ["ai2_arc choice"]
    (tmp_path / "instance_level_data" / "a:b.jsonl").unlink()
    (log,) = read_logs(file)
    assert "its file of items, instance_level_data/a:b.jsonl, is not there" in log.notes[0]


def test_aggregates_without_errors_say_what_is_missing_and_with_errors_are_compared(tmp_path):
    """Two benchmarks in one file, as leaderboards are written; no items."""
    sides = {}
    for side, value, se in (("a", 0.4, 0), ("b", 0.5, 0), ("c", 0.4, 0.02), ("d", 0.5, 0.02)):
        details = {"uncertainty": {"standard_error": {"value": se}}} if se else {}
        sides[side] = eee(tmp_path / side, value, details=details)
        found = json.loads(sides[side].read_text())
        (one,) = found["evaluation_results"]
        other = one | {"evaluation_name": "test", "source_data": {"dataset_name": "test"}}
        sides[side].write_text(json.dumps(found | {"evaluation_results": [one, other]}))

    def mean(first, second):
        names = [str(sides[name].parent) for name in (first, second)]
        return compared(paths(*names, cluster="", metrics=()), Asked()).overall.effect

    for second in ("b", "d"):
        with pytest.raises(AnalysisError) as error:
            mean("a", second)
        assert "quiz, test: the logs have no items, and not the standard error of" in str(
            error.value
        )
        assert "*_samples.jsonl" in str(error.value)
        assert "--metric" not in str(error.value)
    assert mean("c", "d").se == pytest.approx(100 * 0.02 * math.sqrt(2) / math.sqrt(2))


@pytest.mark.parametrize("place", ["/etc/hostname", "../../../../../etc/hostname"])
def test_a_path_of_items_leads_nowhere_else(tmp_path, place):
    file = eee(tmp_path, about={"detailed_evaluation_results": {"file_path": place}})
    assert "is not there" in read_logs(file)[0].notes[0]


@pytest.mark.parametrize(
    ("details", "se"),
    [
        ({"uncertainty": {"standard_error": {"value": 0.02}}}, 0.02),
        ({"uncertainty": {"confidence_interval": {"lower": 0.4, "upper": 0.6}}}, 0.0510213),
        ({"confidence_interval": {"lower": 0.4, "upper": 0.6}}, 0.0510213),  # schema 0.2.0
        ({"uncertainty": {"confidence_interval": {"lower": 0.4, "upper": 0.6,
                                                  "confidence_level": 0.9}}}, 0.0607957),
        ({"uncertainty": {"standard_deviation": 0.5, "num_samples": 100}}, 0.05),
        ({"uncertainty": {"num_samples": 100}}, math.nan),
        ({"uncertainty": None}, math.nan),
    ],
)  # fmt: skip
def test_errors_of_every_eval_ever(tmp_path, details, se):
    (log,) = read_logs(eee(tmp_path, details=details))
    assert log.scores["se"].tolist() == [pytest.approx(se, rel=1e-5, nan_ok=True)]


def test_percent_of_every_eval_ever_are_known_by_their_bounds(tmp_path):
    config = {"metric_id": "pass-at-1", "lower_is_better": False, "min_score": 0, "max_score": 100}
    sure = {"uncertainty": {"standard_error": {"value": 2.0}}}
    (log,) = read_logs(eee(tmp_path, 0.8, metric_config=config, details=sure))
    assert log.scores[["value", "se"]].to_numpy().tolist() == [[0.008, 0.02]]
    (log,) = read_logs(eee(tmp_path, 4.9, metric_config=config | {"max_score": 5.0}))
    assert log.scores["value"].tolist() == [4.9]


def test_how_answers_were_generated_is_a_setting(tmp_path):
    how = {"generation_args": {"temperature": 0.5}, "additional_details": {"seed": "7"}}
    (log,) = read_logs(eee(tmp_path, generation_config=how))
    assert (log.config["generation.temperature"], log.seed) == ("0.5", "7")


def table():
    rows = [
        {
            "Name": f"{a}-{s}",
            "State": "finished",
            "adapter": a,
            "seed": s,
            "eval/acc": 0.5 + 0.1 * s,
        }
        for a in ("full", "lora")
        for s in range(2)
    ]
    return pd.DataFrame([*rows, rows[0] | {"State": "crashed"}])


def test_a_csv_of_wandb_is_read(tmp_path):
    table().to_csv(tmp_path / "runs.csv", index=False)
    logs = read_logs(tmp_path / "runs.csv", metrics=("eval/acc",))
    assert [log.name for log in logs] == ["full-0", "full-1", "lora-0", "lora-1"]
    assert [log.seed for log in logs] == ["0", "1"] * 2
    assert logs[3].config == {"adapter": "lora", "seed": "1", "Name": "lora-1", "State": "finished"}
    assert all("1 that did not finish (crashed)" in log.notes[0] for log in logs)
    with pytest.raises(AnalysisError, match=r"--metric COLUMN, one of .*eval/acc"):
        read_logs(tmp_path / "runs.csv")


def test_a_folder_of_wandb_is_read(tmp_path):
    files = tmp_path / "wandb" / "run-20261127_100000-abc" / "files"
    files.mkdir(parents=True)
    (files / "wandb-summary.json").write_text('{"eval/acc": 0.5, "_step": 3}')
    (files / "config.yaml").write_text(
        "_wandb:\n  value: {}\nlr:\n  value: 0.1\nseed:\n  value: 4\n"
    )
    (log,) = read_logs(tmp_path / "wandb", metrics=("eval/acc",))
    assert (log.config["lr"], log.seed) == ("0.1", "4")


def test_a_folder_of_mlflow_is_read():
    logs = read_logs(LOGS / "mlruns")
    assert sorted(log.name for log in logs) == ["full_0", "full_1", "lora_0", "lora_1"]
    found = {log.name: log.scores.set_index("task")["value"].to_dict() for log in logs}
    assert found["lora_1"] == {"acc": 0.58, "eval/loss": 1.2}  # the last of two steps
    assert ("eval/loss", "eval/loss") in logs[0].lower


def test_a_database_of_mlflow_is_read(tmp_path):
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as database:
        database.executescript(
            "create table runs (run_uuid, name, status, lifecycle_stage, experiment_id);"
            "create table experiments (experiment_id, name, lifecycle_stage);"
            "create table params (run_uuid, key, value);"
            "create table latest_metrics (run_uuid, key, value, is_nan);"
            "insert into experiments values (1, 'mine', 'active'), (2, 'old', 'deleted');"
            "insert into runs values ('r', 'one', 'FINISHED', 'active', 1),"
            " ('q', 'gone', 'FINISHED', 'deleted', 1), ('p', 'gone', 'FINISHED', 'active', 2),"
            " ('f', 'bad', 'FAILED', 'active', 1), ('n', 'now', 'RUNNING', 'active', 1);"
            "insert into params values ('r', 'seed', '3');"
            "insert into latest_metrics select run_uuid, 'acc', 0.25, 0 from runs;"
        )
    (log,) = read_logs(path)
    assert (log.name, log.seed, log.scores["value"].tolist()) == ("one", "3", [0.25])
    assert log.config["experiment"] == "mine"
    assert "2 that did not finish (FAILED, RUNNING)" in log.notes[0]
    path.write_bytes(b"no database" * 100)
    with pytest.raises(AnalysisError, match="is no database of MLflow"):
        trackers.runs(path)


def mlruns(to):
    """The folder that MLflow itself wrote, to be changed."""
    shutil.copytree(LOGS / "mlruns", to)
    return sorted(meta.parent for meta in to.glob("*/*/meta.yaml"))


@pytest.mark.parametrize(
    ("name", "value"), [("status", 4), ("status", 5), ("status", 1), ("lifecycle_stage", "deleted")]
)
def test_runs_of_mlflow_that_failed_or_were_deleted_do_not_count(tmp_path, name, value):
    run = mlruns(tmp_path / "mlruns")[0]
    about = yaml.safe_load((run / "meta.yaml").read_text())
    assert about["status"] == 3  # MLflow's RunStatus.FINISHED
    (run / "meta.yaml").write_text(yaml.safe_dump(about | {name: value}))
    logs = read_logs(tmp_path / "mlruns")
    assert (len(logs), run.name in {log.model for log in logs}) == (3, False)
    assert all(("did not finish" in str(log.notes)) == (name == "status") for log in logs)
    assert len(read_logs(run.parent)) == 3  # an experiment's own folder


def test_the_last_value_in_mlflow_is_that_of_the_highest_step(tmp_path):
    """As `search_runs` and its table `latest_metrics` have it, whatever was written last."""
    run = mlruns(tmp_path / "mlruns")[0]
    with (run / "metrics" / "acc").open("a") as file:
        file.write("1795829714195 0.1 0\n")
    (log,) = [log for log in read_logs(tmp_path / "mlruns") if log.model == run.name]
    assert log.scores.set_index("task")["value"]["acc"] > 0.4


def wandb_folder(path, count=2):
    """A folder as W&B's online runs leave it, with its link to the latest run."""
    for number in range(count):
        files = path / f"run-20261127_10000{number}-abc{number}" / "files"
        files.mkdir(parents=True)
        summary = {
            "eval/acc": 0.5 + number / 10, "eval": {"f1": 0.2}, "best": {"max": 0.7},
            "_step": 3, "_wandb": {"runtime": 9}, "train/loss": "NaN",
        }  # fmt: skip
        (files / "wandb-summary.json").write_text(json.dumps(summary))
        (files / "config.yaml").write_text(f"seed:\n  value: {number}\n")
    (path / "latest-run").symlink_to(files.parent.name)
    return path


def test_the_latest_run_of_wandb_counts_once_and_nested_scores_are_there(tmp_path):
    folder = wandb_folder(tmp_path / "wandb")
    logs = read_logs(folder, metrics=("eval/acc",))
    assert [log.seed for log in logs] == ["0", "1"]
    for name, value in (("eval.f1", 0.2), ("best.max", 0.7)):
        assert read_logs(folder, metrics=(name,))[0].scores["value"].tolist() == [value]


def test_offline_runs_of_wandb_are_told(tmp_path):
    (tmp_path / "wandb" / "offline-run-20261127_100000-abc" / "files").mkdir(parents=True)
    with pytest.raises(AnalysisError, match=r"`wandb sync .*offline-run-\*` uploads them"):
        read_logs(tmp_path / "wandb", metrics=("acc",))


def test_a_csv_of_dictionaries_is_read(tmp_path):
    """As the export in W&B's documentation writes it: columns `summary`, `config`, `name`."""
    summary = [{"acc": 0.5, "loss": math.nan, "eval": {"f1": 0.1}}, {"acc": 0.6, "_step": 3}]
    config = [{"lr": 0.1, "seed": s, "optim": {"betas": [0.9, 0.99]}} for s in range(2)]
    frame = pd.DataFrame({"summary": summary, "config": config, "name": ["a", "b"]})
    frame.to_csv(tmp_path / "runs.csv")
    logs = read_logs(tmp_path / "runs.csv", metrics=("acc",))
    assert [(log.name, log.seed, log.scores["value"][0]) for log in logs] == [
        ("a", "0", 0.5), ("b", "1", 0.6),
    ]  # fmt: skip
    assert logs[0].config["optim.betas"] == "[0.9, 0.99]"
    assert len(read_logs(tmp_path / "runs.csv", metrics=("eval.f1",))) == 1


@pytest.mark.parametrize("state", ["crashed", "failed", "killed", "running", "preempted"])
def test_runs_that_did_not_finish_or_are_there_twice_do_not_count(tmp_path, state):
    rows = table()[:4].assign(ID=["a", "b", "c", "d"])
    late = rows[:1].assign(ID="e", State=state)
    pd.concat([rows, rows[1:3], late]).to_csv(tmp_path / "runs.csv", index=False)
    logs = read_logs(tmp_path / "runs.csv", metrics=("eval/acc",))
    assert len(logs) == 4
    assert f"1 that did not finish ({state}), 2 that are there again" in logs[3].notes[0]
    late.to_csv(tmp_path / "late.csv", index=False)
    with pytest.raises(AnalysisError, match=f"left out: 1 that did not finish .{state}"):
        read_logs(tmp_path / "late.csv", metrics=("eval/acc",))


def test_several_paths_are_runs_of_one_side_with_the_seeds_of_their_names(tmp_path):
    for seed in (3, 4):
        shutil.copytree(LM_EVAL / "toy__base", tmp_path / f"base_seed{seed}")
    (file,) = (tmp_path / "base_seed4").glob("samples_toy_north_*")
    file.write_text(file.read_text().replace('"acc": 1.0', '"acc": 0.0', 1))
    logs = read_side(str(tmp_path / "base_seed*"))
    assert [log.seed for log in logs] == ["3", "4"]
    assert [log.name for log in logs] == ["base_seed3", "base_seed4"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nowhere", "no such file or folder; name a recorded cell"),
        ("nowhere*", "no path is of this pattern"),
        ("", "a side is empty"),
    ],
)
def test_what_is_not_there_is_told(words, said):
    with pytest.raises(AnalysisError, match=said.replace("*", r"\*")):
        read_side(words)


def test_what_is_no_log_is_told(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert not is_logs(tmp_path / "x.json")
    for path in (tmp_path, tmp_path / "x.json"):
        with pytest.raises(AnalysisError, match="holds no scores that are known here"):
            read_logs(path)
    assert is_logs(LM_EVAL)
    assert is_logs(INSPECT / "base")
