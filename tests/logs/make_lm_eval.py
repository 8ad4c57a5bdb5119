"""Writes `lm_eval/`: results and samples of lm-eval itself, of its model of random answers.

    python tests/logs/make_lm_eval.py

Two models answer a group of two subtasks of multiple choice and a task of generation with two
filters: MODEL/results_DATE.json and MODEL/samples_TASK_DATE.jsonl. The second model was asked
after a document was put before the others, so its documents have other numbers.
"""

import json
import random
import shutil
import tempfile
from pathlib import Path

import yaml
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

HERE = Path(__file__).parent
ITEMS = 8
CHOICE = {
    "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
    "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}], "metadata": {"version": 1.0},
}  # fmt: skip
SUMS = {
    "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
    "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"]},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [
        {"name": name,
         "filter": [{"function": "regex", "regex_pattern": text}, {"function": "take_first"}]}
        for name, text in (("strict-match", "#### (\\d+)"), ("flexible-extract", "(\\w+)"))
    ],
    "metadata": {"version": 2.0},
}  # fmt: skip


def documents(kind: str, *, more: bool) -> list[dict[str, object]]:
    """Return the documents of a task; `more`: with another one in front."""
    rng = random.Random(kind)
    found: list[dict[str, object]] = [
        {"question": f"{kind} {i}?", "choices": ["left", "right", "up"], "answer": rng.randrange(3),
         "topic": f"t{i % 3}"}
        for i in range(ITEMS)
    ]  # fmt: skip
    if kind == "sums":
        found = [
            {"question": f"{i} + {i} =", "answer": "lol" if i % 2 else str(i)} for i in range(ITEMS)
        ]
    first = {
        "question": f"{kind} new?",
        "choices": ["left", "right", "up"],
        "answer": 0,
        "topic": "t9",
    }
    return [first, *found] if more and kind != "sums" else found


def write_tasks(folder: Path, *, more: bool) -> None:
    """Write the tasks and their documents."""
    for kind, settings in (("north", CHOICE), ("south", CHOICE), ("sums", SUMS)):
        data = folder / f"{kind}.jsonl"
        lines = [json.dumps(doc) for doc in documents(kind, more=more)]
        data.write_text("\n".join(lines), encoding="utf-8")
        files = {"dataset_kwargs": {"data_files": {"test": str(data)}}}
        task = {"task": f"toy_{kind}"} | settings | files
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    group = {
        "group": "toy", "task": ["toy_north", "toy_south"], "metadata": {"version": 1.0},
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
    }  # fmt: skip
    (folder / "toy.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")


def evaluate(model: str, seed: int, *, more: bool) -> None:
    """Evaluate lm-eval's dummy model and let lm-eval write what it logs."""
    random.seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder), more=more)
        tracker = EvaluationTracker(output_path=str(HERE / "lm_eval"))
        found = simple_evaluate(
            model="dummy", model_args={"pretrained": model}, tasks=["toy", "toy_sums"],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            log_samples=True, evaluation_tracker=tracker, bootstrap_iters=10, random_seed=seed,
        )  # fmt: skip
        assert found is not None
        samples = found.pop("samples")
        found["pretty_env_info"] = ""
        found["configs"] = {}  # they hold paths of the machine
        tracker.save_results_aggregated(results=found, samples=samples)
        for task in samples:
            tracker.save_results_samples(task_name=task, samples=samples[task])


if __name__ == "__main__":
    shutil.rmtree(HERE / "lm_eval", ignore_errors=True)
    evaluate("toy/base", 1, more=False)
    evaluate("toy/tuned", 2, more=True)
