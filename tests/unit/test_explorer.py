"""The explorer's data: packed and read back, names of aliases, adjusted means, what is bounded."""

import hashlib
import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.explorer import records
from analysis.explorer.design import separable
from analysis.explorer.means import adjusted_means, panel_names
from analysis.explorer.names import names_of
from analysis.explorer.packing import Packer, unpacked
from analysis.explorer.payload import payload
from analysis.mixed import fit_mixed
from analysis.regression.study import fitted
from analysis.report.page import Page, render
from analysis.table.frame import from_results, read
from tests.explored import TASKS, explored

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "analysis" / "explorer" / "js"
TEMPLATES = ROOT / "analysis" / "report" / "templates"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small study with all that lies in its cells."""
    folder = explored(tmp_path_factory.mktemp("explored"), seeds=2, items=24, small=True)
    raw = read(folder)
    return fitted(raw, from_results(raw), folder=folder)


@pytest.fixture(scope="module")
def content(study):
    return unpacked(payload(study))


def test_what_is_packed_is_read_back():
    pack = Packer()
    arrays = {
        "floats": pack.array([0.1, np.nan, -1e300], "f64"), "none": pack.codes([]),
        "bytes": pack.codes([0, 255]), "more": pack.codes([0, 256]), "most": pack.codes([2**17]),
    }  # fmt: skip
    found = unpacked(pack.text(arrays | {"text": "</script> é", "plain": {"a": [1, None]}}))
    assert np.array_equal(found["floats"], [0.1, np.nan, -1e300], equal_nan=True)
    assert [found[n].tolist() for n in ("none", "bytes", "more", "most")] == [
        [], [0, 255], [0, 256], [2**17]
    ]  # fmt: skip
    assert (found["text"], found["plain"]) == ("</script> é", {"a": [1, None]})
    with pytest.raises(OverflowError):
        Packer().array([256], "u8")


def test_the_program_is_built_from_its_sources():
    names = sorted(p.name for p in (SOURCES / "src").glob("*.js"))
    files = [*(f"src/{n}" for n in names), "build.mjs", "package.json", "package-lock.json"]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.encode() + b"\0" + (SOURCES / file).read_bytes())
    program = (TEMPLATES / "explorer.js").read_text(encoding="utf-8")
    assert program.startswith(f"/* sources {digest.hexdigest()}\n"), "run `make explorer`"
    licences = (TEMPLATES / "explorer.licences.txt").read_text(encoding="utf-8")
    bundled = re.findall(r"([@\w/.-]+ [\d.]+) \(", program.splitlines()[1])
    assert any(one.startswith("@observablehq/plot ") for one in bundled)
    assert all(f"{one}\n" in licences for one in bundled)


def test_a_run_of_two_names_stands_under_both(study):
    names = names_of(study)
    masking, plw = names["masking"], names["plw"]
    zero = plw.codes == plw.levels.index("0")
    by_name = {
        level: set(names.run[zero & (masking.codes == code)])
        for code, level in enumerate(masking.levels)
    }
    assert by_name["instruction"] == by_name["none"]
    assert len(by_name["none"]) == 4 * 2
    assert names["rank"].levels[-1] == ""  # full fine-tuning has none
    assert names.first.sum() == len(names.runs) == 4 * 4 * 2


def test_adjusted_means_of_a_crossed_table_are_its_means(study):
    panel = panel_names(names_of(study), study.panels[0])
    own = panel.model.used
    # Every cell ran under both seeds: means of seeds are those of their runs.
    table, _ = adjusted_means(panel, ["seed"])
    wanted = own.groupby("seed", observed=True)["score"].mean()
    assert np.allclose(table["estimate"], wanted[table["seed"].astype(int)], atol=1e-8)
    assert table["runs"].tolist() == [16, 16]
    # The adapter is in the model, its doses and ranks crossed with all else: so are its means.
    table, _ = adjusted_means(panel, ["adapter", "seed"], {"adapter": ["full", "mora"]})
    fixed = own.assign(fit=panel.model.fit.design.X_NB[:, panel.model.fit.problem.fixed.kept]
                       @ panel.model.fit.fixef.to_numpy())  # fmt: skip
    keys = [fixed["adapter"].astype(str), fixed["seed"].astype(str)]
    wanted = fixed["fit"].groupby(keys).mean()
    rows = zip(table["adapter"], table["seed"], table["estimate"], strict=True)
    assert all(abs(wanted[a, s] - e) < 1e-8 for a, s, e in rows)


def test_an_unknown_factor_or_level_is_one_clear_line(study):
    panel = panel_names(names_of(study), study.panels[0])
    with pytest.raises(AnalysisError, match=r"adaptor: not a factor here.*Did you mean 'adapter'"):
        adjusted_means(panel, ["adaptor"])
    with pytest.raises(AnalysisError, match="plw=2: not one of"):
        adjusted_means(panel, [], {"plw": ["2"]})


def fit_of(formula):
    rng = np.random.default_rng(1)
    rows = list(itertools.product("abc", "xy", (1.0, 2.0, 4.0), range(3)))
    frame = pd.DataFrame(rows, columns=["arm", "kind", "size", "r"])
    frame["score"] = rng.normal(size=len(frame)) + frame["size"]
    return fit_mixed(frame, formula), frame


@pytest.mark.parametrize(
    "fixed",
    [
        "arm * kind + poly(size, 2)",
        "arm:size + kind",
        "log(size) + I(size^2):arm",
        "C(size) * arm",
        "1",
    ],
)
def test_a_matrix_is_the_product_of_its_tables(fixed):
    fit, frame = fit_of(f"score ~ {fixed}")
    found = separable(fit, frame)
    pairs = zip(found.variables, found.values, strict=True)
    codes = [frame[name].map(values.index).to_numpy() for name, values in pairs]
    rows = found.rows(np.column_stack([np.zeros(len(frame), int), *codes])[:, 1:])
    assert np.allclose(rows, fit.design.X_NB, atol=1e-9)


def test_a_function_of_two_columns_is_refused():
    fit, frame = fit_of("score ~ arm + I((size + r)^2)")
    with pytest.raises(AnalysisError, match="no product of single columns"):
        separable(fit, frame)


def test_what_lies_beside_is_what_the_cells_hold(study, content):
    key = content["keys"][3]
    history = pd.read_parquet(study.folder / "cells" / key / "history.parquet")
    curves = content["curves"]
    start = int(curves["points"][:3].sum())
    count = int(curves["points"][3])
    assert count == records.POINTS[1]
    loss = curves["series"][0]
    shown = loss["low"][3] + loss["values"][start : start + count] / (records.STEPS - 1) * (
        loss["high"][3] - loss["low"][3]
    )
    step = curves["steps"][start : start + count]
    edges = [0, *step.tolist()]
    wanted = [history["loss"][a:b].mean() for a, b in itertools.pairwise(edges)]
    assert np.allclose(shown, wanted, atol=1e-3)
    assert content["logs"][3].splitlines()[-1].startswith("INFO ablate: step 175, loss")
    varied = {one["path"]: one["levels"][one["codes"][3]] for one in content["settings"]["varied"]}
    row = study.rows[study.rows["run"] == key].iloc[0]
    assert (varied["adapter.name"], varied["rank"]) == (f'"{row["adapter"]}"', str(row["rank"]))
    assert ["train.schedule", '"cosine"'] in content["settings"]["same"]


def test_items_are_scores_and_answers_of_the_cells(study, content):
    items = content["items"]
    task = items["tasks"][2]
    r = 5
    key = content["keys"][items["runs"][r]]
    own = pd.read_parquet(study.folder / "cells" / key / "items.parquet")
    own = own[own["task"] == task["name"]].sort_values("doc_id")
    width = -(-len(task["doc"]) // 8)
    bits = np.unpackbits(task["bits"].reshape(-1, width), axis=1)[:, : len(task["doc"])]
    assert np.array_equal(bits[r], own["score"])
    assert [items["texts"][g] for g in task["gold"]] == own["gold"].tolist()
    given = task["answered"].reshape(-1, 3)
    given = given[given[:, 0] == r]
    assert len(given)
    assert [items["texts"][t] for t in given[:, 2]] == own["output"].iloc[given[:, 1]].tolist()
    assert {t["name"] for t in items["tasks"]} == {t for t, _, _ in TASKS}


def test_prompts_stand_beside_their_items(study):
    prompts = pd.DataFrame(
        {"task": "sums", "doc_id": range(24), "prompt": [f"{i}?" for i in range(24)]}
    )
    items = unpacked(payload(study, prompts))["items"]
    task = next(t for t in items["tasks"] if t["name"] == "sums")
    assert [items["texts"][p] for p in task["prompt"]] == [f"{d}?" for d in task["doc"]]


def test_much_is_cut_to_its_share(study, monkeypatch):
    monkeypatch.setattr("analysis.explorer.items.SCORE_BYTES", 60)
    monkeypatch.setattr("analysis.explorer.items.MOST_READ", 3)
    monkeypatch.setattr(records, "CURVE_VALUES", 100)
    monkeypatch.setattr(records, "LOG_TEXT", 0)
    found = unpacked(payload(study))
    assert (found["curves"]["points"] == records.POINTS[0]).all()
    assert max(map(len, found["logs"])) <= records.LOG_SHARE[0]
    assert all(len(t["doc"]) < t["of"] == 24 for t in found["items"]["tasks"])
    assert found["items"]["read"] <= 3


def test_the_page_runs_its_own_scripts_alone(study):
    page = render(Page("t", "source", "0", (), explorer=payload(study)), {})
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 2
    assert len(re.findall(r"'sha256-", page.partition("</head>")[0])) == 2
    assert "https://" not in page.partition("</head>")[0]
    assert "<noscript>" in page
