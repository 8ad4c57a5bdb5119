"""`ablate store`: checked, repaired, merged and exported folders of results."""

import csv
import json
import os
import shutil

import datasets
import jsonschema
import pandas as pd
import pytest

from ablate import cli
from ablate.errors import UserError
from ablate.experiment import upkeep
from ablate.experiment.design import save
from ablate.experiment.request import plan_grid
from ablate.judge import carried
from ablate.judge.jsonl import append, rows
from ablate.results import exports, seal
from ablate.results.items import with_score_keys
from ablate.results.store import Store
from analysis.table.frame import read
from tests import stored
from tests.fake_results import fake_results
from tests.imports import ROOT

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"
SCHEMAS = ROOT / "tests" / "oracles" / "every_eval_ever"


def score(key, value=0.5, n=2, **more):
    about = {"version": "1", "unit": "fraction", "higher_is_better": True, "se": 0.5}
    return (
        about | {"score_key": key, "task": "quiz", "metric": "acc", "value": value, "n": n} | more
    )


def items(*keys, answered=True):
    rows = [(k, "quiz", "acc", doc, float(doc)) for k in keys for doc in range(2)]
    frame = pd.DataFrame(rows, columns=["score_key", "task", "metric", "doc_id", "score"])
    said = {"prompt_hash": "ab", "gold": "yes", "output": ["no", "yes"] * len(keys)}
    return frame.assign(**said) if answered else frame


def folder(path, **records):
    """A folder of results with a sealed record under every key."""
    store = Store(path)
    store.prepare()
    for key, scores in records.items():
        names = [one["score_key"] for one in scores]
        config = {"model": {"source": "hub", "path": "org/tiny", "name": "tiny"},
                  "adapter": {"name": "lora"}, "rank": 2}  # fmt: skip
        with store.writing(key) as draft:
            stored.fill(draft, key, items=items(*names), scores=scores, score_keys=names,
                        config=config, costs={"final_train_loss": 1.0})  # fmt: skip
    return store


def test_a_changed_byte_is_found_by_check_and_moved_away_by_repair(tmp_path, capsys):
    store = folder(tmp_path / "out", **{KEY: [score("s")], OTHER: [score("t")]})
    assert cli.main(["store", "check", str(store.out)]) == 0
    file = store.folder(KEY) / "items.parquet"
    when, content = file.stat(), bytearray(file.read_bytes())
    content[9] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert store.record(KEY)  # size and time are as they were: only every byte tells
    capsys.readouterr()
    assert cli.main(["store", "check", str(store.out)]) == 1
    assert f"cells/{KEY} is damaged: items.parquet has been changed" in capsys.readouterr().out
    assert cli.main(["store", "repair", str(store.out)]) == 0
    assert store.recorded() == [OTHER]
    assert [p.name for p in store.damaged.iterdir()] == [KEY]
    assert cli.main(["store", "check", str(store.out)]) == 0


def test_a_copy_with_other_times_is_whole_and_repair_gives_it_the_times_again(tmp_path):
    store = folder(tmp_path / "out", **{KEY: [score("s")]})
    copy = Store(tmp_path / "copy")
    shutil.copytree(store.out, copy.out, copy_function=shutil.copyfile)
    file = copy.folder(KEY) / "items.parquet"
    assert copy.record(KEY) == store.record(KEY)
    assert file.stat().st_mtime_ns != (store.folder(KEY) / "items.parquet").stat().st_mtime_ns
    list(upkeep.repair(copy.out))
    known = seal.raw(copy.folder(KEY))["seal"]["files"]["items.parquet"]["changed_us"]
    assert file.stat().st_mtime_ns // 1000 == known


def test_records_without_a_seal_are_read_and_sealed_by_repair(tmp_path):
    stored.put(tmp_path, KEY, items=items("s"), scores=[score("s")], score_keys=["s"])
    store = Store(tmp_path)
    before = store.record(KEY)
    assert before["schema"] == 3
    assert "seal" not in seal.raw(store.folder(KEY))
    assert "1 records of an older schema have a seal now" in list(upkeep.repair(tmp_path))
    assert store.record(KEY) == before
    assert list(upkeep.repair(tmp_path)) == []


def test_permissions_are_those_of_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        store = folder(tmp_path / "out", **{KEY: [score("s")]})
    finally:
        os.umask(old)
    assert {oct(p.stat().st_mode & 0o777) for p in store.out.rglob("*") if p.is_dir()} == {"0o755"}
    assert {oct(p.stat().st_mode & 0o777) for p in store.folder(KEY).iterdir()} == {"0o644"}


def test_equal_records_are_merged_once_and_further_scores_are_taken(tmp_path):
    mine = folder(tmp_path / "mine", **{KEY: [score("s")]})
    yours = folder(tmp_path / "yours", **{KEY: [score("s"), score("t")], OTHER: [score("s")]})
    before = sorted((p, p.stat().st_mtime_ns) for p in yours.out.rglob("*"))
    told = list(upkeep.merge(mine.out, [yours.out]))
    assert told == [f"{KEY}: 1 further scores taken", f"taken: {OTHER}"]
    assert list(upkeep.merge(mine.out, [yours.out])) == []
    assert sorted((p, p.stat().st_mtime_ns) for p in yours.out.rglob("*")) == before
    for key in (KEY, OTHER):
        assert mine.record(key)["scores"] == yours.record(key)["scores"]
        assert mine.fault(key, every_byte=True) == ""
        ours, theirs = (pd.read_parquet(s.folder(key) / "items.parquet") for s in (mine, yours))
        pd.testing.assert_frame_equal(ours.reset_index(drop=True), theirs)


def test_further_scores_of_a_run_that_is_scored_here_are_left_until_it_is_done(tmp_path, capsys):
    """Both would add to the record as it was: what is written last would be all that is left."""
    mine = folder(tmp_path / "mine", **{KEY: [score("s")]})
    yours = folder(tmp_path / "yours", **{KEY: [score("s"), score("t")]})
    words = ["store", "merge", str(mine.out), str(yours.out)]
    with mine.claim(KEY):
        assert cli.main(words) == 1
    assert f"{KEY}: is being scored here" in capsys.readouterr().out
    assert [one["score_key"] for one in mine.record(KEY)["scores"]] == ["s"]
    assert cli.main(words) == 0
    assert [one["score_key"] for one in mine.record(KEY)["scores"]] == ["s", "t"]


@pytest.mark.parametrize("further", [(), (score("t"),)])
def test_weights_that_were_kept_there_alone_are_taken(tmp_path, further):
    mine = folder(tmp_path / "mine", **{KEY: [score("s")]})
    yours = folder(tmp_path / "yours", **{KEY: [score("s"), *further]})
    with yours.amending(KEY) as draft:
        (draft / "weights").mkdir()
        (draft / "weights" / "adapter.safetensors").write_bytes(b"numbers")
    told = f"{KEY}: {'1 further scores and ' if further else ''}weights taken"
    assert list(upkeep.merge(mine.out, [yours.out])) == [told]
    taken = mine.folder(KEY) / "weights" / "adapter.safetensors"
    assert taken.read_bytes() == b"numbers"
    assert mine.fault(KEY, every_byte=True) == ""
    assert list(upkeep.merge(mine.out, [yours.out])) == []
    assert list(upkeep.merge(yours.out, [mine.out])) == []


def test_rates_are_taken_and_a_ledger_is_not_which_is_said(tmp_path):
    mine, yours = (folder(tmp_path / name, **{KEY: [score("s")]}) for name in ("mine", "yours"))
    (yours.out / "tuned.csv").write_text("a\n1\n")
    (yours.out / "decisions.jsonl").write_text("{}\n")
    ledger = f"{yours.out / 'decisions.jsonl'}: not taken; a ledger is of one campaign and folder: "
    ledger += f"go on with it by out={yours.out}"
    assert list(upkeep.merge(mine.out, [yours.out])) == ["taken: tuned.csv", ledger]
    assert (mine.out / "tuned.csv").read_text() == "a\n1\n"
    assert not (mine.out / "decisions.jsonl").exists()
    (mine.out / "tuned.csv").write_text("a\n2\n")
    rates = f"{yours.out / 'tuned.csv'}: not taken; rates={yours.out / 'tuned.csv'} takes its rates"
    assert list(upkeep.merge(mine.out, [yours.out])) == [rates, ledger]


def test_a_score_that_failed_here_is_taken_from_where_it_did_not(tmp_path):
    mine = folder(tmp_path / "mine", **{KEY: [score("s")]})
    lost = [{"score_key": "t", "asked": "quiz", "error": "no room"}]
    mine.amend(KEY, mine.record(KEY) | {"score_keys": ["s", "t"], "unscored": lost})
    yours = folder(tmp_path / "yours", **{KEY: [score("s"), score("t")]})
    assert list(upkeep.merge(mine.out, [yours.out])) == [f"{KEY}: 1 further scores taken"]
    assert mine.record(KEY)["scores"] == yours.record(KEY)["scores"]
    assert mine.record(KEY)["unscored"] == []
    assert list(upkeep.merge(yours.out, [mine.out])) == []


def test_what_another_keeps_read_only_is_taken_and_is_ours_to_change(tmp_path):
    """A user who is not root could write no record into a folder that was copied as it is."""
    yours = folder(
        stored_grid(tmp_path / "yours"), **{KEY: [score("s")], OTHER: [score("s", 0.25)]}
    )
    (yours.folder(KEY) / "weights").mkdir()
    (yours.folder(KEY) / "weights" / "adapter.bin").write_bytes(b"1")
    for path in sorted(yours.out.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    old = os.umask(0o022)
    try:
        mine = folder(tmp_path / "mine", **{OTHER: [score("s", 0.5)]})
        list(upkeep.merge(mine.out, [yours.out]))
    finally:
        os.umask(old)
    assert mine.fault(KEY, every_byte=True) == ""
    assert (mine.out / "apart" / OTHER).is_dir()
    when = (yours.folder(KEY) / "items.parquet").stat().st_mtime_ns
    assert (mine.folder(KEY) / "items.parquet").stat().st_mtime_ns == when
    modes = {(p.is_dir(), oct(p.stat().st_mode & 0o777)) for p in mine.out.rglob("*")}
    assert modes == {(True, "0o755"), (False, "0o644")}


def test_of_damaged_names_of_a_grid_none_is_taken_and_whole_ones_take_their_place(tmp_path, capsys):
    one = stored_grid(tmp_path / "one")
    two, new = tmp_path / "two", tmp_path / "new"
    shutil.copytree(one, two)
    (design,) = (one / "designs").iterdir()
    content = (two / "designs" / design.name).read_bytes()
    design.write_bytes(content[: len(content) // 2])
    assert cli.main(["store", "merge", str(new), str(one)]) == 1
    assert f"{design}: is damaged: not taken" in capsys.readouterr().out
    assert list((new / "designs").iterdir()) == []
    shutil.copytree(one / "designs", new / "designs", dirs_exist_ok=True)  # it is ours now
    assert cli.main(["store", "merge", str(new), str(two)]) == 0
    assert (new / "designs" / design.name).read_bytes() == content
    assert [path.name for path in (new / "damaged").iterdir()] == [design.name]


def stored_grid(out):
    """A folder of results with the names of a grid, as a sweep writes them."""
    store = Store(out)
    store.prepare()
    save(plan_grid(["adapter=lora", "rank=2", "evaluate=none", "train.lr=1e-3"]).design, out)
    return out


def test_no_folder_of_results_is_made_among_the_records_of_another(tmp_path, capsys):
    out = stored_grid(tmp_path / "out")
    other = folder(tmp_path / "other", **{KEY: [score("s")]})
    for inside in (out / "cells", out / "cells" / "new"):
        assert cli.main(["store", "merge", str(inside), str(other.out)]) == 2
        assert f"lies among the records of {out}; give that folder" in capsys.readouterr().err
    assert list((out / "cells").iterdir()) == []


def test_different_records_of_one_run_are_kept_apart(tmp_path):
    mine = folder(tmp_path / "mine", **{KEY: [score("s", 0.5)]})
    yours = folder(tmp_path / "yours", **{KEY: [score("s", 0.25)]})
    for _ in range(2):  # again: it is not copied twice
        (told,) = upkeep.merge(mine.out, [yours.out])
        assert "differs in quiz acc (0.5 here, 0.25 there)" in told
    assert mine.record(KEY)["scores"][0]["value"] == 0.5
    (apart,) = (mine.out / "apart").iterdir()
    assert json.loads((apart / "record.json").read_text())["scores"][0]["value"] == 0.25
    (yours.folder(KEY) / "record.json").write_text("{")
    (told,) = upkeep.merge(mine.out, [yours.out])
    assert told.endswith("is damaged (record.json is no JSON): not taken")
    assert cli.main(["store", "merge", str(mine.out), str(yours.out)]) == 1


def judged(store, name, pairs, request, *, better=1.0):
    """Write a judgment of pairs (run, doc_id) as `ablate judge` does, with replies and answers."""
    made = [
        {"judge": "j", "mode": "pairwise", "task": "quiz", "doc_id": doc, "item": f"quiz:{doc}",
         "arm": "adapter=lora", "baseline": "reference", "seed": "0", "run": run,
         "baseline_run": None, "length": 3, "length_baseline": 4, "replies": ["A", "B"],
         "errors": [], "preference": better, "identical": False, "consistent": True,
         "first_shown": 1, "decided": 2} for run, doc in pairs
    ]  # fmt: skip
    place = store.out / "judgments"
    carried.written(place / name, made, request)
    append(
        place / "replies.jsonl", [{"id": f"q{doc}", "judge": "j", "reply": "A"} for _, doc in pairs]
    )
    answered = [{"id": f"{run}{doc}", "run": run, "answer": f"{better}"} for run, doc in pairs]
    append(place / "answers.jsonl", answered)
    return made


def merged(mine, yours):
    assert cli.main(["store", "merge", str(mine.out), str(yours.out)]) == 0


def test_judgments_are_put_together_once_and_tabulated(tmp_path):
    """Two machines judged their halves of a grid by the same command."""
    mine = folder(tmp_path / "mine", **{KEY: [score("s")]})
    yours = folder(tmp_path / "yours", **{KEY: [score("s")], OTHER: [score("s")]})
    ours = judged(mine, "one", [(KEY, 0), (KEY, 1)], {"mode": None})
    theirs = judged(yours, "one", [(KEY, 1), (OTHER, 2)], {"mode": None}, better=1.0)
    alone = judged(yours, "two", [(OTHER, 3)], {"mode": "pairwise"})
    before = {p: p.read_bytes() for p in yours.out.rglob("*") if p.is_file()}
    for _ in range(2):  # again: nothing is taken twice
        merged(mine, yours)
        place = mine.out / "judgments"
        assert list(rows(place / "one" / "judgments.jsonl")) == [*ours, theirs[1]]
        assert list(rows(place / "two" / "judgments.jsonl")) == alone
        assert [row["id"] for row in rows(place / "replies.jsonl")] == ["q0", "q1", "q2", "q3"]
        answers = [row["id"] for row in rows(place / "answers.jsonl")]
        assert answers == [f"{KEY}0", f"{KEY}1", f"{OTHER}2", f"{OTHER}3"]
        assert read(place / "one" / "win_rates.csv")["pairs"].tolist() == [3]
        assert not (mine.out / "apart").exists()
    assert {p: p.read_bytes() for p in yours.out.rglob("*") if p.is_file()} == before


def test_judgments_that_differ_are_kept_apart(tmp_path, capsys):
    mine = folder(tmp_path / "mine", **{KEY: [score("s")], OTHER: [score("s", 0.5)]})
    yours = folder(tmp_path / "yours", **{KEY: [score("s")], OTHER: [score("s", 0.25)]})
    ours = judged(mine, "same", [(KEY, 0)], {"mode": None})
    judged(mine, "asked", [(KEY, 1)], {"mode": None, "limit": 5})
    differ = judged(yours, "same", [(KEY, 0)], {"mode": None}, better=0.0)
    judged(yours, "asked", [(KEY, 1)], {"mode": None, "limit": 9})
    judged(yours, "runs", [(OTHER, 2)], {"mode": None})  # another result of the run is here
    append(yours.out / "judgments" / "replies.jsonl", [{"id": "q0", "judge": "j", "reply": "B"}])
    for _ in range(2):
        merged(mine, yours)
        told = " ".join(capsys.readouterr().out.split())
        assert "same: differs in 1 judgments: it is kept in" in told
        assert "asked: was asked for otherwise than ours: it is kept in" in told
        assert f"runs: has other results of run {OTHER}: it is kept in" in told
        place, apart = mine.out / "judgments", mine.out / "apart" / "judgments"
        assert list(rows(place / "same" / "judgments.jsonl")) == ours
        assert not (place / "runs").exists()
        names = ["answers.jsonl", "asked", "replies.jsonl", "runs", "same"]
        assert sorted(p.name for p in apart.iterdir()) == names
        assert list(rows(apart / "same" / "judgments.jsonl")) == differ
        assert [row["reply"] for row in rows(place / "replies.jsonl") if row["id"] == "q0"] == ["A"]
        assert [row["reply"] for row in rows(apart / "replies.jsonl")] == ["B"]
        assert [row["id"] for row in rows(apart / "answers.jsonl")] == [f"{KEY}0", f"{OTHER}2"]
        assert f"{OTHER}2" not in [row["id"] for row in rows(place / "answers.jsonl")]


def test_of_damaged_or_linked_judgments_none_is_taken(tmp_path):
    mine = folder(tmp_path / "mine", **{KEY: [score("s")]})
    yours = folder(tmp_path / "yours", **{KEY: [score("s")]})
    made = judged(yours, "one", [(KEY, 0)], {"mode": None})
    theirs = yours.out / "judgments"
    for wrong in ({"run": "../../x"}, {"preference": "many"}, {"task": ["quiz"]}):
        carried.written(theirs / "one", [made[0] | wrong], {"mode": None})
        cli.main(["store", "merge", str(mine.out), str(yours.out)])
        assert not (mine.out / "judgments" / "one").exists()
    (theirs / "one" / "request.json").write_text("{")
    assert cli.main(["store", "merge", str(mine.out), str(yours.out)]) == 1
    shutil.rmtree(mine.out / "judgments")
    (theirs / "two").symlink_to(tmp_path)
    assert cli.main(["store", "merge", str(mine.out), str(yours.out)]) == 1
    assert not (mine.out / "judgments").exists()


@pytest.mark.parametrize("form", ["parquet", "datasets"])
def test_tables_that_are_exported_hold_every_item_and_run(tmp_path, form):
    store = folder(tmp_path / "out", **{KEY: [score("s")], OTHER: [score("s"), score("t")]})
    assert upkeep.export(store.out, tmp_path / "to", form) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "to"]
    if form == "datasets":
        told = {
            name: datasets.load_dataset(
                str(tmp_path / "to"), name, split="train", cache_dir=str(tmp_path / "cache")
            ).to_pandas()
            for name in ("items", "runs", "history")
        }
    else:
        names = ("items", "runs", "history")
        told = {n: pd.read_parquet(tmp_path / "to" / f"{n}.parquet") for n in names}
    assert told["items"].groupby("train_key").size().to_dict() == {KEY: 2, OTHER: 4}
    assert told["items"]["score"].tolist() == [0.0, 1.0] * 3
    assert told["runs"]["train_key"].tolist() == [KEY, OTHER]
    assert len(told["history"]) == 2


def test_every_eval_ever_is_as_its_schemas_say(tmp_path):
    unit = {"unit": "nats", "higher_is_better": False, "task": "heldout"}
    measure = {"higher_is_better": None, "task": "distance"}
    scores = [score("s"), score("t", **unit), score("u", **measure)]
    store = folder(tmp_path / "out", **{KEY: scores})
    upkeep.export(store.out, tmp_path / "to", "every_eval_ever")
    (file,) = (tmp_path / "to").rglob("*.json")
    found = json.loads(file.read_text())
    jsonschema.validate(found, json.loads((SCHEMAS / "eval.schema.json").read_text()))
    assert found["model_info"]["id"] == f"org/tiny-{KEY}"
    assert [one["evaluation_name"] for one in found["evaluation_results"]] == ["quiz", "heldout"]
    assert [r["metric_config"]["lower_is_better"] for r in found["evaluation_results"]] == [
        False,
        True,
    ]
    lines = tmp_path / "to" / found["detailed_evaluation_results"]["file_path"]
    schema = json.loads((SCHEMAS / "instance_level_eval.schema.json").read_text())
    every = [json.loads(line) for line in lines.read_text().splitlines()]
    for line in every:
        jsonschema.validate(line, schema)
    assert [(e["output"]["raw"], e["evaluation"]["is_correct"]) for e in every] == [
        (["no"], False),
        (["yes"], True),
    ]


def test_items_of_two_limits_that_state_no_score_are_told_apart_by_their_number():
    scores = [score("few", n=2), score("many", n=3)]
    docs = [0, 1, 0, 1, 2]
    table = pd.DataFrame({"task": "quiz", "metric": "acc", "doc_id": docs, "score": 1.0})
    assert with_score_keys(table, scores)["score_key"].tolist() == ["few"] * 2 + ["many"] * 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what to do"),
        (["chekc", "x"], "Did you mean 'check'"),
        (["check"], "takes one folder"),
        (["merge", "x"], "takes the folder to merge into"),
        (["check", "nowhere"], "no folder of results"),
        (["check", "x", "--to", "y"], "belongs to ablate store export"),
        (["export", "nowhere"], "--to DIR"),
    ],
)
def test_a_wrong_request_is_one_line(words, said, capsys):
    assert cli.main(["store", *words]) == 2
    assert said in capsys.readouterr().err


def test_an_export_does_not_write_over_anything(tmp_path):
    store = folder(tmp_path / "out", **{KEY: [score("s")]})
    with pytest.raises(UserError, match="is there already"):
        upkeep.export(store.out, store.out, "parquet")


def test_a_table_that_is_exported_as_csv_is_read_as_it_was(tmp_path):
    whole = fake_results(plws=(0.0, 1.0), controls=False).head(40)
    whole.loc[whole.index[::2], "dataset"] = "=1+1"  # a spreadsheet would run it
    whole.to_parquet(tmp_path / exports.SCORES, index=False)
    path = exports.as_csv(tmp_path / exports.SCORES)
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]
    with path.open(newline="", encoding="utf-8") as file:
        cells = {row["dataset"] for row in csv.DictReader(file)}
    assert cells == {"'=1+1", *whole["dataset"]} - {"=1+1"}
    back = read(path)
    assert back["dataset"].tolist() == whole["dataset"].tolist()
    assert list(back.columns) == list(whole.columns)
    assert back["value"].tolist() == whole["value"].tolist()
    assert back["train_key"].tolist() == whole["train_key"].tolist()
    store = folder(tmp_path / "out", **{KEY: [score("s")]})
    assert upkeep.export(store.out, tmp_path / "to", "csv") == 1
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["results.csv"]
