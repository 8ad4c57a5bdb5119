"""`evaluate.items`: chosen items score as they do among all, under keys of their own."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from ablate.cli import main
from ablate.config.build import build, plain
from ablate.config.compose import expand
from ablate.config.composer import config_loader
from ablate.config.grid import cells
from ablate.config.schema import Evaluate, Execution
from ablate.errors import UserError
from ablate.evaluate import chosen, harness, requests, stock_index
from ablate.evaluate.rebuild import prompts
from ablate.experiment import identity
from ablate.experiment.design import collect, design, save
from ablate.results.card import _scores
from ablate.results.record import items_text
from ablate.results.spreadsheet import write_csv
from ablate.results.store import Store
from ablate.run import run_cells
from analysis.questions.informative.estimate import telling_items
from analysis.report import chosen_items, overview
from tests.unit.test_informative import drawn, items_of

SHOTS = 2


def asking(file, *tasks, **settings):
    """An evaluation on the items of a table, as the design makes it."""
    asked = Evaluate(name="e", tasks=tuple(map(str, tasks)), items=file and str(file), **settings)
    return chosen.with_chosen(asked)


def table(path, rows, header="task,doc_id"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture
def own(tmp_path):
    """A folder of two task files on 14 items each: own_choice and own_writing."""
    folder = tmp_path / "own"
    folder.mkdir()
    rows = [{"q": f"{'fox ' * (n % 4)}task {n}?", "a": n % 3, "w": f"dog {n}"} for n in range(14)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"test": str(folder / "rows.jsonl")}
    about = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test",
             "doc_to_text": "q"}  # fmt: skip
    options = {"output_type": "multiple_choice", "doc_to_target": "a",
               "doc_to_choice": ["lazy dog", "Paris", "times"]}  # fmt: skip
    written = {"output_type": "generate_until", "doc_to_target": "w",
               "generation_kwargs": {"until": ["e"], "max_gen_toks": 8, "do_sample": False},
               "metric_list": [{"metric": "chrf", "aggregation": "chrf",
                                "higher_is_better": True}]}  # fmt: skip
    for name, settings in (("own_choice", options), ("own_writing", written)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | about | settings))
    return folder


def found(model, tokenizer, asked):
    scores = harness.score(model, tokenizer, asked, execution=Execution(eval_batch_size=4))
    return {(one.task, one.metric): one for one in scores}


@pytest.mark.parametrize("shots", [None, SHOTS])
def test_chosen_items_are_asked_and_scored_as_among_all(own, tmp_path, model, tokenizer, shots):
    """With drawn examples before them too: the same prompts, answers and scores, item by item."""
    ids = (2, 3, 9, 12)
    file = table(tmp_path / "items.csv", [("own_choice", n) for n in reversed(ids)])
    every = found(model, tokenizer, asking(None, own, num_fewshot=shots))
    some = found(model, tokenizer, asking(file, own, num_fewshot=shots))
    assert every.keys() == some.keys()
    for place, one in some.items():
        whole = every[place]
        if place[0] == "own_writing":  # the table has none of it: all are scored
            assert (one, one.n, one.of, one.chosen) == (whole, 14, 14, False)
            continue
        assert (one.n, one.of, one.chosen, whole.chosen) == (4, 14, True, False)
        assert one.items == tuple(pair for pair in whole.items if pair[0] in ids)
        assert one.value == pytest.approx(np.mean([score for _, score in one.items]))
        assert list(one.answers) == list(ids)
        for number in ids:
            ours, theirs = one.answers[number], whole.answers[number]
            assert (ours.prompt_hash, ours.gold, ours.output) == (
                theirs.prompt_hash, theirs.gold, theirs.output,
            )  # fmt: skip
            assert ours.loglikelihoods == pytest.approx(theirs.loglikelihoods, abs=1e-4)
    answered = every["own_choice", "acc"].answers.values()
    assert len({answer.prompt_hash for answer in answered}) == 14
    assert 0 < every["own_choice", "acc"].value < 1


def test_generated_answers_and_the_sandbox_have_chosen_items_too(tmp_path, model, tokenizer):
    names = ("micro_translation", "micro_knowledge", "micro_writing")
    rows = [(name, n) for name in names for n in (2, 1)]
    code = {"run_code": True, "max_new_tokens": 6}
    every = found(model, tokenizer, asking(None, *names, limit=3, **code))
    some = found(model, tokenizer, asking(table(tmp_path / "i.csv", rows), *names, **code))
    assert every.keys() == some.keys()
    for place, one in some.items():
        assert (one.n, one.chosen, one.of) == (2, True, every[place].of)
        assert dict(one.items) == {n: dict(every[place].items)[n] for n in (1, 2)}
        if place[0] != "micro_writing":  # whose answers are drawn
            said = {n: answer.output for n, answer in one.answers.items()}
            assert said == {n: every[place].answers[n].output for n in (1, 2)}
    assert len({score for _, score in every["micro_translation", "chrf"].items}) > 1


# -- the key ------------------------------------------------------------------------------------


def keys(asked):
    return {name: identity.digest([kind, *rest])
            for kind, name, rest in identity._benchmarks(asked, [False])}  # fmt: skip


def test_a_score_key_holds_the_items_and_not_their_table(tmp_path):
    tasks = ("micro_knowledge", "micro_lives")
    rows = [("micro_knowledge", n) for n in (0, 1, 2)]
    one = keys(asking(table(tmp_path / "one.csv", rows), *tasks))
    (tmp_path / "two.jsonl").write_text(
        "".join(json.dumps({"item": n, "model": "m", "task": task}) + "\n"
                for task, n in [*reversed(rows), rows[0]])
    )  # fmt: skip
    assert keys(asking(tmp_path / "two.jsonl", *tasks)) == one
    every, first = keys(asking(None, *tasks)), keys(asking(None, *tasks, limit=3))
    assert one["micro_lives"] == every["micro_lives"]  # the table has none of it
    last = [*rows[:2], ("micro_knowledge", 3)]
    other = keys(asking(table(tmp_path / "three.csv", last), *tasks))
    known = [found["micro_knowledge"] for found in (one, every, first, other)]
    assert len(set(known)) == 4  # the first three by a limit are another setting, not another name


def test_the_items_of_all_data_sets_and_models_are_one_set(tmp_path):
    """As the report writes them: a row per stratum, task and item."""
    rng, parts = np.random.default_rng(0), []
    for stratum in ("d m", "e m"):
        items = items_of(drawn(rng, signal_I=np.full(40, 8.0)), task="micro_knowledge")
        parts.append(telling_items(items).assign(stratum=stratum))
    rows = pd.concat(parts, ignore_index=True)
    write_csv(rows, tmp_path / "chosen.csv")
    asked = asking(tmp_path / "chosen.csv", "micro_knowledge")
    union = sorted(set(parts[0]["doc_id"]) | set(parts[1]["doc_id"]))
    assert asked.chosen == {"micro_knowledge": tuple(union)}
    assert len(parts[0]) < len(union) < len(rows)


@pytest.fixture
def groups(monkeypatch):
    monkeypatch.setattr(stock_index, "index", lambda: {
        "mmlu": ["mmlu_virology", "mmlu_world_religions"],
        "mmlu_virology": "mmlu/default/mmlu_virology.yaml",
        "mmlu_world_religions": "mmlu/default/mmlu_world_religions.yaml",
    })  # fmt: skip


def test_items_of_a_group_are_those_of_its_tasks(groups, tmp_path, monkeypatch):
    file = table(tmp_path / "i.csv", [("mmlu_virology", 165), ("mmlu_virology", 3)])
    asked = asking(file, "mmlu")
    assert chosen.of(asked, "mmlu") == {"mmlu_virology": (3, 165)}
    assert keys(asked) != keys(asking(None, "mmlu"))
    with pytest.raises(UserError, match=r"has no item of evaluate.tasks \(mmlu_virology, mmlu_w"):
        asking(table(tmp_path / "o.csv", [("mmlu", 3)]), "mmlu")
    monkeypatch.setattr(requests, "_load", lambda *_, **__: {"mmlu_virology": None})
    with pytest.raises(UserError, match=r"evaluate.tasks=mmlu: not with evaluate.items.*religions"):
        harness.prepare(asked)


# -- bad inputs ---------------------------------------------------------------------------------

KNOWLEDGE = [("micro_knowledge", 3)]
WRONG = {
    "another task": (
        [("micro_knowlege", 3), ("micro_lives", 1)],
        r"task=micro_knowlege: no such task, in evaluate.tasks \(micro_knowledge\) or elsewhere. "
        "Did you mean 'micro_knowledge'",
    ),
    "none of the benchmarks": ([("micro_lives", 1)], "has no item of evaluate.tasks"),
    "outside": ([("micro_knowledge", 1000)], "has no item 1000: its 1,000 items are 0 to 999"),
    "below": ([("micro_knowledge", -1)], "line 2: doc_id=-1: must be the number of an item"),
    "no number": ([*KNOWLEDGE, ("micro_knowledge", "x")], "line 3: doc_id=x: must be the number"),
    "half": ([("micro_knowledge", 1.5)], "line 2: doc_id=1.5: must be the number of an item"),
    "no task": ([("", 1)], "line 2: task=: must be a task's name"),
    "nothing": ([], "holds no items"),
}


@pytest.mark.parametrize(("rows", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_table_is_one_line(rows, says, tmp_path):
    with pytest.raises(UserError, match=rf"^evaluate\.items=.*{says}") as error:
        asking(table(tmp_path / "i.csv", rows), "micro_knowledge")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("i.csv", "name,doc_id\nmicro_knowledge,1\n", "line 2: has no column task; it has name"),
        ("i.csv", "task,place\nmicro_knowledge,1\n", "has no column doc_id or item; it has task"),
        ("i.jsonl", '{"task": "micro_knowledge", "item": true}\n', "item=True: must be the number"),
        ("i.jsonl", '{"task": 3, "item": 3}\n', "task=3: must be a task's name"),
        ("i.jsonl", "{", "line 1: broken JSON"),
        ("i.txt", "3", "not one of .arrow, .csv"),
        (None, "", "no such file"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line(name, text, says, tmp_path):
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"^evaluate\.items=.*{says}") as error:
        asking(tmp_path / (name or "nowhere.csv"), "micro_knowledge")
    assert "dataset.path" not in str(error.value)


def test_an_item_may_have_its_task_before_it(tmp_path):
    file = table(tmp_path / "i.csv", [("micro_lives", "micro_lives:7")], header="task,item")
    assert asking(file, "micro_lives").chosen == {"micro_lives": (7,)}


def test_items_of_own_tasks_are_checked_against_their_data(own, tmp_path):
    asked = asking(table(tmp_path / "i.csv", [("own_choice", 14)]), own)
    with pytest.raises(UserError, match=r"^evaluate\.items=.*: own_choice has no item 14: its 14"):
        harness.prepare(asked)


def test_a_limit_beside_chosen_items_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"evaluate.limit=5: must be null beside evaluate.items"):
        asking(table(tmp_path / "i.csv", KNOWLEDGE), "micro_knowledge", limit=5)
    with pytest.raises(UserError, match=r"evaluate.chosen=.*: must be null"):
        Evaluate(name="e", chosen={"micro_lives": (1,)})
    with pytest.raises(ValueError, match="with_chosen was not called"):
        chosen.of(Evaluate(name="e", items="i.csv"), "micro_lives")


# -- plan, record, report -----------------------------------------------------------------------


def test_a_plan_says_how_many_items_of_how_many(tmp_path, capsys):
    rows = [*KNOWLEDGE, ("micro_knowledge", 8), ("micro_pronouns", 2)]
    file = table(tmp_path / "i.csv", rows)
    words = ["evaluate.tasks=[micro_knowledge,micro_lives]", "evaluate.limit=null",
             f"evaluate.items={file}", "train.max_steps=1", f"out={tmp_path / 'out'}"]  # fmt: skip
    assert main(["plan", "--format", "json", *words]) == 0
    plan = json.loads(capsys.readouterr().out)
    counts = [(one["task"], one["items"], one["of"], one["chosen"]) for one in plan["scored"]]
    assert counts == [
        ("micro_knowledge", 2, 1000, str(file)), ("micro_lives", 1000, 1000, None),
    ]  # fmt: skip
    (note,) = [line for line in plan["notes"] if line.startswith("evaluate.items=")]
    assert note == (
        f"evaluate.items={file}: of micro_knowledge chosen items alone are scored; scores on them "
        "are no scores of the benchmark; all items of micro_lives, which it has none of; "
        "micro_pronouns in it is not in evaluate.tasks"
    )
    assert main(["plan", *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "micro_knowledge 2 of 1,000, micro_lives 1,000; chosen by evaluate.items=" in shown


def test_a_record_stands_alone_and_the_report_says_what_was_scored(tmp_path):
    """Scored, recorded and tabulated; the table of items may be gone or changed afterwards."""
    file = table(tmp_path / "i.csv", [("micro_knowledge", n) for n in (5, 2)])
    asked = ["evaluate.tasks=[micro_knowledge]", "evaluate.limit=null", "evaluate.heldout=[]",
             f"evaluate.items={file}", "execution.device=cpu"]  # fmt: skip
    plan = design(cells(expand(asked, loader=config_loader(()))), study="none")
    base = plan.cells[0]
    file.unlink()
    store = Store(tmp_path / "out")
    store.prepare()
    run_cells([build(json.loads(json.dumps(plain(base.cell))))], base.key, store)
    record = store.record(base.key)
    (score,) = [one for one in record["scores"] if one["metric"] == "acc"]
    assert (score["n"], score["of"], score["chosen"]) == (2, 1000, True)
    again = build(record["config"])
    assert again.evaluate.chosen == {"micro_knowledge": (2, 5)}
    assert identity.identify(again).units == base.identity.units
    assert record["score_keys"] == [unit.key for unit in base.identity.units]
    assert prompts(store.folder(base.key))["doc_id"].tolist() == [2, 5]
    save(replace(plan, cells=(base,)), store.out)
    raw = pd.read_parquet(collect(store.out))
    assert not [name for name in raw if str(name).startswith("evaluate.")]
    said = overview.design(raw)
    assert "Scored on chosen items alone: micro_knowledge (2 of 1,000 items); scores on" in said
    assert chosen_items.warning(raw)[0][1].startswith("Of micro_knowledge (2 of 1,000 items) alone")
    every = raw.assign(chosen=False)
    assert chosen_items.warning(every) == chosen_items.sentence(every.drop(columns="of")) == []


def test_where_a_run_has_both_a_card_has_the_interval_of_each():
    about = {"task": "quiz", "metric": "acc", "se": 0.1, "unit": "fraction"}
    scores = [about | {"score_key": "s", "value": 0.5, "n": 2, "of": 90, "chosen": True},
              about | {"score_key": "t", "value": 1.0, "n": 4, "of": 90}]  # fmt: skip
    rows = [("s", 0.0), ("s", 1.0), *[("t", 1.0)] * 4]
    items = pd.DataFrame(rows, columns=["score_key", "score"]).assign(task="quiz", metric="acc")
    some, first = _scores({"scores": scores}, items).splitlines()[2:4]
    assert some.endswith("| 2 chosen of 90 |")
    assert first.endswith("| the first 4 of 90 |")
    alone = _scores({"scores": scores[1:]}, items[items["score_key"] == "t"])
    assert first in alone
    assert items_text(about | {"n": 1200, "of": 1200}) == "1,200"


def test_runs_without_a_benchmark_are_of_no_chosen_items():
    """Their number of items is not known, and stands as an object in a table of these alone."""
    rows = pd.DataFrame({"task": ["heldout"], "n": [9], "of": [None], "chosen": [None]})
    assert chosen_items.chosen_items(rows) == ""
