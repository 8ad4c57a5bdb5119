"""What a scoring that fails costs, and what is kept of every item."""

import hashlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from ablate.config.build import plain
from ablate.config.compose import expand
from ablate.config.composer import config_loader
from ablate.config.grid import cells
from ablate.evaluate import harness, scoring
from ablate.evaluate.answers import Answer, prompt_hash
from ablate.evaluate.answers import answers as answers_of
from ablate.evaluate.rebuild import prompts
from ablate.evaluate.scores import TaskScore, Unscored
from ablate.evaluate.scoring import Wanted
from ablate.experiment.identity import Unit
from ablate.recording import entries, items


def made(task, **settings):
    about = {"metric": "acc", "value": 0.5, "unit": "fraction", "n": 2, "version": "1"}
    return TaskScore(asked=task, task=task, task_type="mc", skill=task, **about | settings)


def wanted(*names, kind="task"):
    return [Wanted(None, Unit(kind, name, f"key of {name}"), None) for name in names]


@pytest.mark.parametrize("broken", [{"bad"}, {"bad", "worse"}, set()])
def test_a_task_that_fails_costs_its_own_score(broken, monkeypatch):
    calls = []

    def tasks(model, history, some):
        calls.append([one.unit.name for one in some])
        for one in some:
            yield made(one.unit.name)
            if one.unit.name in broken:
                raise ZeroDivisionError("in the\ntask")

    monkeypatch.setattr(scoring, "_tasks", tasks)
    monkeypatch.setattr(scoring, "_heldout", lambda *_: iter(()))
    monkeypatch.setattr(scoring, "_measures", lambda *_: iter(()))
    names = ["one", "bad", "two", "worse"]
    scored = scoring.score(None, [], wanted(*names))
    assert [s.task for s in scored.scores] == [name for name in names if name not in broken]
    line = "ZeroDivisionError: in the task"
    assert scored.lost == [Unscored(n, f"key of {n}", line) for n in names if n in broken]
    assert len(calls) == (5 if broken else 1)  # together, and one by one only after a failure


def test_an_interrupt_is_no_failure_of_a_task(monkeypatch):
    def tasks(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "_tasks", tasks)
    with pytest.raises(KeyboardInterrupt):
        scoring.score(None, [], wanted("one"))


def test_where_memory_runs_out_half_the_batch_is_tried(monkeypatch):
    (point,) = cells(expand(["evaluate=none", "train.lr=0.1"], loader=config_loader(())))
    seen = []

    def tasks(model, history, some):
        assert len({id(one.cell) for one in some}) == 1
        seen.append(some[0].cell.execution.eval_batch_size)
        if seen[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from (made(one.unit.name) for one in some)

    monkeypatch.setattr(scoring, "_tasks", tasks)
    asked = [replace(one, cell=point.cell) for one in wanted("one", "two")]
    most = 20
    scored = scoring.score(None, [], asked)
    assert [s.task for s in scored.scores] == ["one", "two"]
    assert seen == [64, 32, 16]
    assert scored.halvings == 2
    most = 0
    lost = scoring.score(None, [], asked).lost
    assert [unit.asked for unit in lost] == ["one", "two"]
    assert "out of memory" in lost[0].error


def test_a_lost_gpu_is_no_failure_of_a_task(monkeypatch):
    def tasks(*_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(scoring, "_tasks", tasks)
    with pytest.raises(RuntimeError, match="device-side"):
        scoring.score(None, [], wanted("one"))


def test_the_items_file_keeps_what_was_asked_and_answered(tmp_path):
    picked = Answer(prompt_hash("Who?"), "Ann", "Bob", (-2.5, -1.25))
    said = Answer(prompt_hash("What?"), "a fox", "a dog", None)
    whole = Answer(prompt_hash(""), "A text.", None, (-40.0,))
    scores = [
        made("mc", items=((0, 0.0),), answers={0: picked}),
        made("mc", metric="acc_norm", items=((0, 1.0),), answers={0: picked}),
        made("short", items=((3, 0.5),), answers={3: said}),
        made("rolling", metric="word_perplexity", answers={0: whole}),
        made("heldout_test", items=((7, 1.5),)),
    ]
    items(scores).to_parquet(tmp_path / "items.parquet", index=False)
    frame = pd.read_parquet(tmp_path / "items.parquet")
    assert frame["task"].tolist() == ["mc", "mc", "short", "rolling", "heldout_test"]
    assert frame["prompt_hash"][2] == said.prompt_hash
    assert frame["output"].tolist()[:3] == ["Bob", "Bob", "a dog"]
    assert frame["gold"].tolist()[:4] == ["Ann", "Ann", "a fox", "A text."]
    assert frame["loglikelihoods"][1].tolist() == [-2.5, -1.25]
    assert frame["loglikelihoods"][2] is None
    assert math.isnan(frame["score"][3])
    assert frame.iloc[4][["prompt_hash", "gold", "output", "loglikelihoods"]].isna().all()
    assert json.dumps(entries(scores))
    assert all("answers" not in entry and "items" not in entry for entry in entries(scores))


def test_the_answer_to_an_item_is_read_off_the_sample():
    def task(kind, **about):
        return SimpleNamespace(OUTPUT_TYPE=kind, multiple_input=False, **about)

    sample = {"doc_id": 4, "doc": {}, "prompt_hash": "ab" * 32, "target": 1}
    options = ["x", "y", "z"]
    choice = task("multiple_choice", doc_to_choice=lambda doc: options)
    resps = [[(-3.0, False)], [(-1.0, True)], [(np.float64(-2), False)]]
    (found,) = answers_of(choice, [sample | {"resps": resps}]).values()
    assert found == Answer("ab" * 8, "y", "y", (-3.0, -1.0, -2.0))
    several = sample | {"resps": resps, "target": [0, 2]}
    assert answers_of(choice, [several])[4].gold == '["x", "z"]'
    inputs = SimpleNamespace(
        OUTPUT_TYPE="multiple_choice",
        multiple_input=True,
        doc_to_choice=lambda doc: options,
        doc_to_text=lambda doc: 2,
    )
    (found,) = answers_of(inputs, [sample | {"resps": resps, "target": " end"}]).values()
    assert (found.gold, found.output) == ("z", "y")
    (found,) = answers_of(task("generate_until"), [sample | {"resps": [["one"]]}]).values()
    assert found == Answer("ab" * 8, "1", "one", None)
    (found,) = answers_of(task("generate_until"), [sample | {"resps": [["one", "two"]]}]).values()
    assert found.output == '["one", "two"]'
    rolling = sample | {"resps": [[-9.5]], "target": "A text."}
    (found,) = answers_of(task("loglikelihood_rolling"), [rolling]).values()
    assert found == Answer("ab" * 8, "A text.", None, (-9.5,))


def test_the_prompts_of_a_cell_can_be_made_again(tmp_path):
    asked = ["evaluate.tasks=[micro_knowledge,micro_lives]", "evaluate.limit=3"]
    (point,) = cells(expand(asked, loader=config_loader(())))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain(point.cell)))
    frame = prompts(tmp_path)
    assert frame["task"].tolist() == ["micro_knowledge"] * 3 + ["micro_lives"] * 3
    assert frame["doc_id"].tolist() == [0, 1, 2] * 2
    for bench in harness.prepare(point.cell.evaluate):
        for name, task in bench.tasks.items():
            for instance in task.instances:
                row = frame[(frame["task"] == name) & (frame["doc_id"] == instance.doc_id)]
                assert row["prompt"].item() == instance.args[0]
                digest = hashlib.sha256(instance.args[0].encode()).hexdigest()
                assert digest.startswith(row["prompt_hash"].item())
