"""Logs that are damaged, odd or copied: what `ablate compare` says of them."""

import gzip
import json
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ablate import cli
from analysis.compare.benchmarks import Asked
from analysis.compare.estimate import compared
from analysis.compare.sides import paths
from analysis.errors import AnalysisError
from analysis.logs.copies import counted_once
from analysis.logs.log import Log
from analysis.logs.read import read_logs
from tests.unit.test_compare import INSPECT, LM_EVAL, answers, judged, log, run

BASE, TUNED = LM_EVAL / "toy__base", LM_EVAL / "toy__tuned"
SUMS = "samples_toy_sums_*"


def sides(tmp_path):
    """Copies of two folders of lm-eval."""
    return [Path(shutil.copytree(own, tmp_path / own.name)) for own in (BASE, TUNED)]


def of(first, second, **asked):
    """What comes of two paths."""
    return compared(paths(str(first), str(second), cluster="", metrics=()), Asked(**asked))


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300])
def test_an_infinite_or_absurd_score_is_a_missing_one(value):
    a, b = answers(60, 0.6, 1), answers(60, 0.6, 2)
    b[3] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = judged([log(t=a)], [log("b", t=b)])
    b[3] = np.nan
    known = judged([log(t=a)], [log("b", t=b)])[0]
    assert found.overall.effect == known.overall.effect
    assert found.overall.missing.second == 1
    assert any(
        "B: b: 1 scores are no numbers, infinite or beyond 1e+50" in note for note in found.notes
    )


def stated(name, *values, se=math.nan):
    columns = ["task", "group", "metric", "value", "se", "n"]
    return [
        Log(name, name, Path(name), seed=str(i),
            scores=pd.DataFrame([("t", "t", "acc", v, se, 9)], columns=columns))
        for i, v in enumerate(values)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (stated("a", 0.9, 0.9), stated("b", 0.1, 0.1)),  # runs that agree: no error to be had
        (stated("a", 0.9, se=math.inf), stated("b", 0.1, se=0.01)),
    ],
)
def test_what_cannot_be_computed_is_no_pass(first, second):
    with pytest.raises(AnalysisError, match="nothing tells the error"):
        judged(first, second)


def test_a_stated_score_that_is_no_number_is_told():
    with pytest.raises(AnalysisError, match="share no benchmark"):
        judged(stated("a", 0.9, se=0.1), stated("b", math.inf, se=0.1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda text: text.encode("utf-16"), "is no text in UTF-8"),
        (lambda text: text.replace("{", '{"é": 1, ', 1).encode("latin-1"), "is no text in UTF-8"),
        (lambda text: text[:-20].encode(), "was the file cut off"),
    ],
)
def test_samples_that_cannot_be_read_are_one_line(capsys, tmp_path, content, said):
    first, second = sides(tmp_path)
    (file,) = second.glob(SUMS)
    file.write_bytes(content(file.read_text()))
    status, out, err = run(capsys, first, second)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert file.name in err


@pytest.mark.parametrize("form", ["mark", "packed"])
def test_a_byte_order_mark_and_gzip_are_read(tmp_path, form):
    first, second = sides(tmp_path)
    known = of(first, second)
    for file in second.glob("samples_*"):
        text = file.read_bytes()
        file.unlink()
        if form == "packed":
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(text))
        else:
            file.write_bytes(b"\xef\xbb\xbf" + text)
    assert of(first, second).rows == known.rows
    if form == "packed":
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(text)[:-30])
        with pytest.raises(AnalysisError, match="cut off while written"):
            of(first, second)


def test_the_side_without_items_is_named(tmp_path):
    first, second = sides(tmp_path)
    (file,) = second.glob(SUMS)
    file.write_bytes(b"")
    found = of(first, second)
    assert f"B: {file.name}: holds no items." in found.notes
    said = next(note for note in found.notes if "not paired by item" in note)
    assert said.startswith("toy_sums: not paired by item, for there are none in ")
    assert str(next(second.glob("results_*"))) in said


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is empty"), ('{"results": {', "is no JSON"), ("[1]", "holds no results")],
)
def test_a_damaged_file_of_results_is_told(tmp_path, text, said):
    first, second = sides(tmp_path)
    name = "results_2026-11-27T20-00-00.000000.json"
    (second / name).write_text(text)
    assert any(f"B: {name} {said}" in note for note in of(first, second).notes)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / name).write_text(text)
    with pytest.raises(AnalysisError, match=f"{name} {said}"):
        read_logs(alone)


def test_a_log_of_inspect_that_was_cut_off_or_did_not_end_is_told(tmp_path):
    (file,) = (INSPECT / "tuned").glob("*.json")
    cut = tmp_path / "cut.json"
    cut.write_text(file.read_text()[:-50])
    with pytest.raises(AnalysisError, match=r"cut.json: is no JSON; was the file cut off"):
        read_logs(cut)
    found = json.loads(file.read_text())
    ended = tmp_path / "ended.json"
    ended.write_text(json.dumps(found | {"status": "cancelled"}))
    notes = of(INSPECT / "base", ended).notes
    assert "B: ended.json: this evaluation did not end (cancelled); what it scored counts." in notes
    for sample in found["samples"]:
        sample["scores"]["match"]["value"] = "a word"
        sample["scores"]["includes"]["value"] = "a word"
    ended.write_text(json.dumps(found))
    with pytest.raises(AnalysisError, match="no score is a number"):
        of(INSPECT / "base", ended)


def test_control_characters_of_a_log_are_replaced():
    escape = "\x1b]0;x\x07\x9b2J\u202e\r\n"
    bad = log(f"m{escape}", **{f"t{escape}": answers(20, 0.5, 1)})
    bad = Log(bad.name, bad.name, Path("x"), seed=escape, levels={escape: escape},
              config={"lr": escape}, items=bad.items.assign(doc=escape), notes=(escape,),
              lower=frozenset({(f"t{escape}", "acc")}))  # fmt: skip
    assert bad.name == bad.model == "m" + "�]0;x" + "�" * 2 + "2J" + "�" * 3
    texts = [bad.seed, *bad.levels, *bad.levels.values(), *bad.config.values(), *bad.notes,
             *bad.items["task"], *bad.items["group"], *bad.items["doc"]]  # fmt: skip
    assert "".join(texts).isprintable()
    assert {task for task, _ in bad.lower} == set(bad.items["task"])


def test_a_fraction_is_not_compared_with_a_percentage():
    a = answers(40, 0.6, 1)
    with pytest.raises(AnalysisError, match=r"acc of A lies between 0 and 1, and of B .* 100"):
        judged([log(t=a)], [log(t=100 * a)])
    with pytest.raises(AnalysisError, match=r"acc of B lies between 0 and 1, and of A .* 59"):
        judged(stated("a", 59.4, 58), stated("b", 0.61, 0.6))
    judged([log(t=a)], [log(t=0 * a)])


def test_copies_of_one_run_are_no_seeds(capsys, tmp_path):
    for own, name in ((BASE, "base"), (TUNED, "tuned")):
        for seed in range(3):
            shutil.copytree(own, tmp_path / f"{name}_seed{seed}")
    one = of(BASE, TUNED)
    thrice = of(tmp_path / "base_seed*", tmp_path / "tuned_seed*")
    assert thrice.rows == one.rows
    said = "base_seed1, base_seed2: the same items and scores as base_seed0"
    assert any(said in note for note in thrice.notes)
    _, out, _ = run(capsys, tmp_path / "base_seed*", tmp_path / "tuned_seed*")
    assert "one run a side" in out.replace("\n", " ").replace("  ", " ")
    folder = tmp_path / "report"
    assert cli.main(["report", str(tmp_path), "--out", str(folder)]) == 0
    assert set(pd.read_csv(folder / "tables" / "scores.csv")["runs"]) == {1}
    assert "so it is counted once" in (folder / "index.html").read_text()
    assert any("A and B have the same scores" in note for note in of(BASE, BASE).notes)


def test_runs_that_agree_by_chance_are_no_copies():
    """Both fail on all items: equal scores of other settings say nothing."""
    zeros = [log(f"s{i}", str(i), t=[0.0] * 30 + [1.0] * 5) for i in range(2)]
    other = [Log(**{**vars(one), "config": {"seed": one.seed}}) for one in zeros]
    assert len(counted_once(zeros, of_model=False)) == 1
    assert len(counted_once(other, of_model=False)) == 2
    mixed = [Log(**{**vars(one), "items": log(t=answers(90, 0.5, 1)).items}) for one in other]
    (kept,) = counted_once(mixed, of_model=False)
    assert kept.notes[0].startswith("s1: the same items and scores as s0")
    assert len(counted_once(mixed, of_model=True)) == 2


def test_a_document_that_one_side_asked_twice_is_not_missing_on_the_other(tmp_path):
    first, second = sides(tmp_path)
    known = of(first, second)
    (file,) = second.glob(SUMS)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines, *lines[:4]]))
    found = of(first, second)
    assert found.rows == known.rows
    assert any("B has 4 documents again" in note for note in found.notes)


def test_other_filters_and_documents_are_told_where_there_are_any(tmp_path):
    found = of(BASE, TUNED)
    said = "toy_sums: judged by exact_match,strict-match; exact_match,flexible-extract was logged"
    assert any(said in note for note in found.notes)
    assert not any("documents differ" in note for note in of(BASE, BASE, by_id=True).notes)
    assert any("documents differ" in note for note in of(BASE, TUNED, by_id=True).notes)


def test_flips_are_refused_before_any_work(capsys, tmp_path):
    for path, said in (
        (tmp_path / "no" / "f.csv", "there is no folder"),
        (tmp_path, "is a folder"),
    ):
        status, out, err = run(capsys, BASE, TUNED, "--flips", path)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert said in err


def test_the_metric_is_not_cut_off_in_a_narrow_terminal(capsys):
    _, out, _ = run(capsys, BASE, TUNED)
    assert "…" not in out
