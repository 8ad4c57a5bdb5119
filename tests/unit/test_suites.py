"""Ready benchmark suites: names that lm-eval ships, shots of their sources, numbers of items."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from datasets import load_dataset

from ablate.cli import main
from ablate.config.build import typed
from ablate.config.schema import Evaluate
from ablate.errors import UserError
from ablate.evaluate import requests, stock_index, task_items, tasks_index
from ablate.experiment import identity
from ablate.paths import conf_dir

# Shots as their leaderboards and papers state them, written down from those.
SUITES = {
    "open_llm": {"arc_challenge": 25, "hellaswag": 10, "truthfulqa_mc2": 0, "mmlu": 5,
                 "winogrande": 5, "gsm8k": 5},
    "commonsense": dict.fromkeys(["boolq", "piqa", "social_iqa", "hellaswag", "winogrande",
                                  "arc_easy", "arc_challenge", "openbookqa"], 0),
    "math": {"gsm8k": 5, "hendrycks_math": 4},
    "code": {"humaneval": 0, "mbpp": 3},
    "ifeval": {"ifeval": 0},
    "forgetting": {"hellaswag": 0, "arc_challenge": 0, "winogrande": 0},
}  # fmt: skip


def suite(name: str) -> Evaluate:
    return typed(Evaluate, yaml.safe_load((conf_dir() / "evaluate" / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_has_its_tasks_shots_and_items(name: str) -> None:
    found = suite(name)
    assert {task: found.shots(task) for task in found.tasks} == SUITES[name]
    assert all(task_items.scored(task, None) for task in found.tasks)


@pytest.mark.parametrize("task", tasks_index.published())
def test_a_published_name_is_lm_evals(task: str) -> None:
    """Found without lm-eval's index, which takes ten seconds; a group has a file that says so."""
    source = tasks_index.find(task)
    if source.kind == "group":
        root = stock_index.folder()
        files = [f for f in root.glob(f"{task}/**/*.yaml") if f.stem.strip("_") == task]
        assert any(yaml.safe_load(f.read_text())["group"] == task for f in files)
    else:
        assert source.path is not None
        assert tasks_index.task_settings(source.path)["task"] == task


def own_task(folder: Path, name: str, files: dict[str, str], **settings: object) -> str:
    about = {"task": name, "dataset_kwargs": {"data_files": files}, "test_split": "test",
             "output_type": "multiple_choice", "doc_to_text": "q", "doc_to_target": "a",
             "doc_to_choice": ["yes", "no"]}  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(about | settings))
    return str(path)


def test_the_items_of_own_tasks_are_those_that_datasets_reads(tmp_path: Path) -> None:
    rows = [{"q": f"{i}?\n", "a": i % 2} for i in range(23)]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    (tmp_path / "other.json").write_text(json.dumps(rows[:7]))
    for ending, kind in (("csv", "csv"), ("parquet", "parquet"), ("jsonl", "json")):
        files = {"test": str(tmp_path / f"rows.{ending}")}
        name = own_task(tmp_path, f"own_{ending}", files, dataset_path=kind)
        read = load_dataset(kind, data_files=files, cache_dir=str(tmp_path / "hf"))["test"]
        assert task_items.counts(name) == [read.num_rows] == [23]
    several = {"test": str(tmp_path / "other.json"), "train": str(tmp_path / "rows.csv")}
    assert task_items.counts(own_task(tmp_path, "b", several, dataset_path="json")) == [7]
    assert task_items.scored(str(tmp_path), 10) == 7 + 3 * 10  # a limit is one of every task
    for lost in ({"dataset_path": "some/hub"}, {"dataset_path": "json", "test_split": "nowhere"}):
        assert task_items.counts(own_task(tmp_path, "c", several, **lost)) is None


def test_what_a_limit_leaves_unscored_is_told() -> None:
    def told(*names: str, limit: int | None = 500) -> str:
        return task_items.left_unscored(Evaluate(name="micro", tasks=names, limit=limit))

    # numbers of items: arXiv 1905.07830 and 2009.03300
    assert told("hellaswag", "micro_lives") == (
        "evaluate.limit=500: hellaswag is scored on the first 500 of 10,042 items; "
        "evaluate.limit=null scores all"
    )
    assert "first 500 items of each of its 57 tasks, which have 14,042" in told("mmlu")
    assert "lambada_openai is scored on at most the first 500 items" in told("lambada_openai")
    assert told("hellaswag", limit=None) == told("humaneval") == told("micro_lives") == ""
    assert task_items.scored("mmlu", 10) == 570


def test_a_plan_has_the_price_of_the_tasks_that_are_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.jsonl").write_text('{"q": "?", "a": 0}\n' * 20)
    files = {"test": str(tmp_path / "few.jsonl")}
    tasks = [own_task(tmp_path, "few", files, dataset_path="json"), "hellaswag", "mmlu"]
    seconds, limits = {}, ("500", "null")
    for task, limit in itertools.product(tasks, limits):
        words = [f"evaluate.tasks=[{task}]", f"evaluate.limit={limit}", f"out={tmp_path / 'out'}"]
        assert main(["plan", "train.max_steps=1", "--format", "json", *words]) == 0
        plan = json.loads(capsys.readouterr().out)
        seconds[task, limit] = plan["core_seconds"]
        assert any("first 500" in n for n in plan["notes"]) == (task != tasks[0] and limit == "500")
    assert seconds[tasks[0], "500"] == seconds[tasks[0], "null"]
    assert seconds[tasks[0], "500"] < seconds["hellaswag", "500"] < seconds["mmlu", "500"]
    assert seconds["hellaswag", "500"] < seconds["hellaswag", "null"] < seconds["mmlu", "null"]


def test_the_index_is_not_read_for_a_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_index, "index", lambda: pytest.fail("lm-eval's index was read"))
    for name in SUITES:
        tasks_index.check_tasks(suite(name).tasks, run_code=True)
        identity._benchmarks(typed(Evaluate, {"name": "x", "tasks": [*SUITES[name]],
                                              "run_code": True}), [False])  # fmt: skip


def test_shots_by_task_are_part_of_that_tasks_score_key_alone() -> None:
    def keys(shots: object) -> dict[str, object]:
        asked = {"name": "x", "tasks": ["hellaswag", "winogrande"], "num_fewshot": shots}
        return {n: rest for _, n, rest in identity._benchmarks(typed(Evaluate, asked), [False])}

    by_task, five = keys({"hellaswag": 10, "winogrande": 5}), keys(5)
    assert by_task["winogrande"] == five["winogrande"]
    assert by_task["hellaswag"] != five["hellaswag"]
    assert keys({"winogrande": 5})["hellaswag"] == keys(None)["hellaswag"]


def test_shots_of_a_task_that_is_not_asked_are_refused() -> None:
    asked = {"name": "x", "tasks": ["hellaswag"], "num_fewshot": {"helaswag": 10}}
    with pytest.raises(UserError, match=r"evaluate.num_fewshot=helaswag: .*'hellaswag'"):
        identity._benchmarks(typed(Evaluate, asked), [False])


def test_what_is_left_of_a_suite_can_be_scored_alone() -> None:
    """After a failure or an interruption the missing tasks are asked for without the others."""
    left = replace(suite("open_llm"), tasks=("gsm8k",))
    assert left.shots("gsm8k") == 5


@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_what_the_model_writes_is_run_with_consent_only(task: str) -> None:
    with pytest.raises(UserError, match=f"evaluate.tasks={task}: .*evaluate.run_code=true"):
        tasks_index.check_tasks([task])
    tasks_index.check_tasks([task], run_code=True)


def test_a_groups_code_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "find", lambda name: tasks_index.Source("group", name))
    tasks = {"deep": SimpleNamespace(UNSAFE_CODE=True)}
    manager = SimpleNamespace(load=lambda specs: {"tasks": tasks})
    monkeypatch.setattr(requests, "_whole_index", lambda: manager)
    with pytest.raises(UserError, match=r"evaluate\.run_code=true"):
        requests._load("many", run_code=False)


def test_data_that_cannot_be_had_are_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablate.hub.unreachable", lambda: "no network")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    own = tmp_path / "own.yaml"
    own.write_text("task: own\ndataset_path: json\n")
    tasks_index.check_data(["micro_lives", str(own), "mmlu"])
    with pytest.raises(UserError, match=r"arc_challenge: allenai/ai2_arc: .*\(no network\)"):
        tasks_index.check_data(["arc_challenge"])
