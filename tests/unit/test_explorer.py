"""The explorer's data: packed and read back, names of aliases, marginal means, what is bounded."""

import hashlib
import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.errors import AnalysisError
from analysis.explorer import items, records
from analysis.explorer.design import separable
from analysis.explorer.means import marginal_means, panel_names
from analysis.explorer.names import names_of
from analysis.explorer.packing import Packer, unpacked
from analysis.explorer.payload import payload, table_payload
from analysis.inference.means import means
from analysis.inference.reference_grid import ReferenceGrid
from analysis.mixed import fit_mixed
from analysis.regression.model import Request, analysed
from analysis.regression.study import fitted
from analysis.report.page import Page, render
from analysis.table.factors import level_text
from analysis.table.frame import from_results, read
from tests.explored import TASKS, explored, explored_table, names_of_rows
from tests.fake_results import fake_results

WP_POWER = 1 / np.log10(2)  # PLW = w_p to this power
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


def test_marginal_means_of_a_crossed_table_are_its_means(study):
    panel = panel_names(names_of(study), study.panels[0])
    own = panel.model.used
    # Every cell ran under both seeds: means of seeds are those of their runs.
    table, _ = marginal_means(panel, ["seed"])
    wanted = own.groupby("seed", observed=True)["score"].mean()
    assert np.allclose(table["estimate"], wanted[table["seed"].astype(int)], atol=1e-8)
    assert table["runs"].tolist() == [16, 16]
    # The adapter is in the model, its doses and ranks crossed with all else: so are its means.
    table, _ = marginal_means(panel, ["adapter", "seed"], {"adapter": ["full", "mora"]})
    fixed = own.assign(fit=panel.model.fit.design.X_NB[:, panel.model.fit.problem.fixed.kept]
                       @ panel.model.fit.fixef.to_numpy())  # fmt: skip
    keys = [fixed["adapter"].astype(str), fixed["seed"].astype(str)]
    wanted = fixed["fit"].groupby(keys).mean()
    rows = zip(table["adapter"], table["seed"], table["estimate"], strict=True)
    assert all(abs(wanted[a, s] - e) < 1e-8 for a, s, e in rows)


@pytest.mark.parametrize(("of", "at"), [("method", {}), ("size", {}), ("plw", {"size": [1, 7]})])
def test_marginal_means_of_a_table_are_those_of_its_page(of, at):
    """Covariates at their means unless chosen or filtered, as emmeans has them; w_p by the PLW."""
    formula = "accuracy ~ method + size + tokens + wp + I(wp^2) + (1 | seed)"
    reg = analysed(explored_table(), Request(formula=formula, family="gaussian"))
    panel = names_of_rows(reg)
    assert [c.column for c in panel.names.columns] == ["method", "size", "plw", "seed"]
    found, _ = marginal_means(panel, [of], {n: [f"{v}" for v in own] for n, own in at.items()})
    column = {"plw": "wp"}.get(of, of)
    chosen = {} if of == "method" else {column: sorted(reg.used[column].unique())}
    wanted = means(reg.fit, reg.frame, column, at=chosen | at, df=reg.df).table()
    back = wanted[column].map(lambda v: level_text(v**WP_POWER if column == "wp" else v))
    wanted = wanted.assign(**{of: back.str.replace(r"(0\.\d).*", r"\1", regex=True)}).set_index(of)
    assert sorted(found[of]) == sorted(wanted.index)
    for row in found.to_dict("records"):
        for name in ("estimate", "se", "df", "low", "high"):
            assert row[name] == pytest.approx(wanted.loc[row[of], name], rel=1e-8)


def test_the_explorer_of_a_table_has_its_words_and_knows_its_limits():
    table = explored_table()
    asked = Request(formula="accuracy ~ method + tokens + (1 | seed)", family="gaussian")
    reg = analysed(table, asked)
    content = unpacked(table_payload(reg, [("Fitted.", f"Fitted: {reg.fit.formula}.")]))
    assert content["table"] | {"base": 0} == {
        "unit": "accuracy", "difference": "accuracy", "digits": 4, "scale": "identity", "base": 0
    }  # fmt: skip
    assert [f["column"] for f in content["factors"]] == ["method", "seed"]  # tokens: 144 values
    assert content["warnings"] == []  # the formula names every column
    assert content["keys"][0] == "row 0"
    assert np.array_equal(content["scores"], table["accuracy"])
    large = pd.concat([table] * 140, ignore_index=True)
    noise = np.random.default_rng(0).normal(0, 0.01, len(large))
    large = large.assign(accuracy=large["accuracy"] + noise)
    assert table_payload(analysed(large, Request(formula="accuracy ~ method"))) == ""
    wide = table.assign(name=[f"n{i % 70}" for i in range(len(table))])
    assert table_payload(analysed(wide, Request(formula="accuracy ~ name"))) == ""


def shared_rows(**columns):
    """Return 3 x 2 x 4 rows with a score, and columns computed from them."""
    rng = np.random.default_rng(4)
    rows = itertools.product(("a", "b", "c"), ("p", "q"), range(4))
    table = pd.DataFrame(list(rows), columns=["f", "g", "rep"])
    table["y"] = 1 + (table["g"] == "q") + rng.normal(0, 0.2, len(table))
    return table.assign(**{name: make(table) for name, make in columns.items()})


def test_levels_of_a_table_are_apart_and_in_its_order():
    sizes = {"a": "mid", "b": "low", "c": "high"}
    order = pd.CategoricalDtype(["low", "mid", "none", "high"], ordered=True)
    near = {"a": 0.1 + 0.2, "b": 0.3, "c": 1.0}  # equal to twelve digits
    table = shared_rows(
        size=lambda t: t["f"].map(sizes).astype(order),
        near=lambda t: t["f"].map(near),
        text=lambda t: t["f"].map({"a": "", "b": "none", "c": "x"}),
        rate=lambda t: (t["rep"] / 10).astype("float32"),
        part=lambda t: t["rep"].astype(float).where(t["rep"] != 2),
        z=lambda t: t["y"] - t.groupby("rep")["y"].transform("mean"),
    )
    wanted = {
        "y ~ size + g": ("low", "mid", "high"),
        "y ~ C(near) + g": ("0.3", "0.30000000000000004", "1"),
        "y ~ text + g": ("(empty)", "none", "x"),
        "y ~ rate + g": ("0", "0.1", "0.2", "0.3"),
        "z ~ g + (1 | part)": ("0", "1", "3", "(missing)"),  # dropped: its rows are fitted
    }
    for formula, levels in wanted.items():
        reg = analysed(table, Request(formula=formula))
        panel = names_of_rows(reg)
        column = next(c for c in panel.names.columns if c.column != "g")
        assert column.levels == levels, formula
        found, _ = marginal_means(panel, ["g"])
        assert np.allclose(found["estimate"], means(reg.fit, reg.frame, "g").table()["estimate"])
        own = unpacked(table_payload(reg))["factors"]
        assert next(f for f in own if f["column"] == column.column)["levels"] == list(levels)


def test_a_column_of_a_table_may_be_called_as_the_place_of_its_rows():
    table = shared_rows().rename(columns={"rep": "(row)"})
    reg = analysed(table, Request(formula="y ~ `(row)` + g"))
    content = unpacked(table_payload(reg))
    assert [f["column"] for f in content["factors"]] == ["(row)", "g"]
    assert content["factors"][0]["levels"] == ["0", "1", "2", "3"]
    found, _ = marginal_means(names_of_rows(reg), ["g"])
    assert np.allclose(found["estimate"], table.groupby("g")["y"].mean())  # balanced


@pytest.mark.parametrize(
    ("response", "function", "unit"),
    [
        ("I(y * 100)", lambda y: y * 100, "I(y * 100)"),
        ("log(I(y + 9))", lambda y: np.log(y + 9), "log(I(y + 9))"),
        ("log(y)", lambda y: y, "y"),  # undone
    ],
)
def test_what_is_not_undone_of_a_score_is_shown_as_it_was_fitted(response, function, unit):
    """Of a balanced table without other terms the means are those of the fitted values."""
    table = shared_rows()
    reg = analysed(table, Request(formula=f"{response} ~ g", family="gaussian"))
    content = unpacked(table_payload(reg))
    assert content["table"]["unit"] == content["tasks"][0]["title"] == unit
    assert np.allclose(content["scores"], function(table["y"]))
    found, _ = marginal_means(names_of_rows(reg), ["g"])
    fitted = np.log(table["y"]) if response == "log(y)" else function(table["y"])
    assert np.allclose(found["estimate"], fitted.groupby(table["g"]).mean())
    assert content["table"]["scale"] == ("log" if response == "log(y)" else "identity")


def page_means(content, model, of):
    """What a page computes of what it is shipped: marginal means of a crossed grid, by levels."""
    fit, names = model["fit"], model["names"]
    chosen = [i for i, f in enumerate(content["factors"]) if f["column"] in of]
    tables = []  # where the levels of some factors lead, a value of a column of the model each
    for one in fit["variables"]:
        keys = [tuple(content["factors"][i]["codes"][n] for i in one["by"]) for n in names]
        tables.append((one["by"], dict(zip(keys, one["codes"], strict=True))))
    sums, counts = {}, {}
    levels = [sorted(set(f["codes"][names])) for f in content["factors"]]
    for name in itertools.product(*levels):
        value = [table[tuple(name[i] for i in by)] for by, table in tables]
        x_C = np.array(fit["scale"])
        for c, parts in enumerate(fit["parts"]):
            for v, row in parts:
                one = fit["variables"][v]
                x_C[c] *= one["table"].reshape(-1, one["size"])[row, value[v]]
        key = tuple(content["factors"][i]["levels"][name[i]] for i in chosen)
        sums[key], counts[key] = sums.get(key, 0.0) + x_C[fit["kept"]], counts.get(key, 0) + 1
    size = len(fit["kept"])
    low = np.tril_indices(size)
    jacobian = fit["jacobian"].reshape(-1, len(low[0]))
    phi_KK = fit["phi"].reshape(len(jacobian), -1)

    def square(lower):
        full = np.zeros((size, size))
        full[low] = lower
        return full + np.tril(full, -1).T

    found = {}
    for key, total in sums.items():
        l_B = total / counts[key]
        s_K = np.array([l_B @ square(j) @ l_B for j in jacobian])
        s_K /= l_B @ square(fit["unadjusted"]) @ l_B
        df = 2 / (s_K @ phi_KK @ s_K)
        estimate, se = l_B @ fit["coefficients"], np.sqrt(l_B @ square(fit["covariance"]) @ l_B)
        half = stats.t.ppf(0.975, df) * se
        found[key] = (estimate, se, df, estimate - half, estimate + half)
    return found


@pytest.mark.parametrize("rule", ["satterthwaite", "kenward-roger"])
def test_what_a_page_is_shipped_gives_the_means_of_the_analysis(rule):
    """Two paths: the packed coefficients and covariances, and `inference.means` of the fit."""
    raw = fake_results(controls=False)
    kept = (raw["masking"] == "none") & raw["adapter"].isin(["lora", "mora"])
    raw = raw[kept & (raw["dataset"] == "micro_short")].assign(alias=False)
    crossed = fitted(raw, from_results(raw), request=Request(df=rule))
    content = unpacked(payload(crossed))
    compared = 0
    for model, panel in zip(content["models"], crossed.panels, strict=True):
        fit, used = panel.fit, panel.used
        at = {n: used[n].unique() for n in ReferenceGrid.of(fit, used, {}).covariates}
        for of in (["adapter"], ["seed"], ["adapter", "seed"]):
            table = means(fit, used, of, at=at, df=rule).table()
            found = page_means(content, model, of)
            assert len(found) == len(table) > 1
            for row in table.to_dict("records"):
                wanted = [row[n] for n in ("estimate", "se", "df", "low", "high")]
                assert found[tuple(str(row[n]) for n in of)] == pytest.approx(wanted, rel=1e-6)
                compared += 1
    assert compared > 10


def test_an_unknown_factor_or_level_is_one_clear_line(study):
    panel = panel_names(names_of(study), study.panels[0])
    with pytest.raises(AnalysisError, match=r"adaptor: not a factor here.*Did you mean 'adapter'"):
        marginal_means(panel, ["adaptor"])
    with pytest.raises(AnalysisError, match="plw=2: not one of"):
        marginal_means(panel, [], {"plw": ["2"]})


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


def test_the_worst_items_of_a_run_are_those_below_runs_of_its_own_kind():
    """Item 0 is hard on the first data set alone: beside all runs it were the worst of its runs."""
    scores_RI = np.array([
        [0, 100, 100], [0, 100, 100], [0, 100, 0],
        [100, 100, 100], [100, 100, 100], [100, 0, np.nan],
    ], dtype=np.float32)  # fmt: skip
    scored = items._Scored.of(scores_RI, np.array([4, 4, 4, 7, 7, 7]))
    assert scored.mean_KI[0] == pytest.approx([0, 100, 200 / 3])
    assert scored.mean_KI[1] == pytest.approx([100, 200 / 3, 100])
    assert scored.worst(0, 1) == []
    assert scored.worst(2, 2) == [2]
    assert scored.worst(5, 5) == [1]
