"""An adapter and a question of another installed package, found by their entry points."""

import sys

import pytest

from ablate.adapters import plugged as methods
from ablate.adapters import registry
from ablate.errors import UserError
from ablate.experiment.request import plan_grid
from analysis.errors import AnalysisError
from analysis.facade import load
from analysis.report import plugged as questions
from tests.fake_results import fake_results

METHOD = """\
from ablate.adapters.method import Method, Size, each, smallest_side

ROW = Method(
    config="LoraConfig",
    size=Size(setting="r", count=each(lambda r, d, k: r * (d + k)), largest=smallest_side),
    has_factors=True,
)
"""
QUESTION = """\
from analysis.report.page import Section, Sheet, Text
from analysis.report.tables import Table

def section(study):
    means = study.rows.groupby("adapter", observed=True)["score"].mean().reset_index()
    return Section("by-adapter", "By adapter", (Text("Means."), Sheet(Table("by", "By", means))))
"""
POINTS = """\
[ablate.adapters]
plugged_toy = plugged_package.method:ROW
plugged_wrong = plugged_package.method:Size
plugged_lost = plugged_package.nowhere:ROW

[ablate.questions]
by-adapter = plugged_package.question
"""
LEVEL = "# A toy.\nname: plugged_level\nkind: plugged_toy\noptions: {}\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package as `pip install` would leave it; returns its folder."""
    site = tmp_path / "site"
    inside, about = site / "plugged_package", site / "plugged_package-1.0.dist-info"
    inside.mkdir(parents=True)
    about.mkdir()
    (inside / "__init__.py").touch()
    (inside / "method.py").write_text(METHOD)
    (inside / "question.py").write_text(QUESTION)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(site))
    _forget()
    yield inside
    _forget()


def _forget():
    for cached in (methods.points, methods.row, questions.points):
        cached.cache_clear()
    for name in [n for n in sys.modules if n.partition(".")[0] == "plugged_package"]:
        del sys.modules[name]


@pytest.fixture
def planned(package, tmp_path):
    """Returns a function from the text of a level to its cell."""

    def cell(level=LEVEL):
        folder = tmp_path / "mine" / "adapter"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plugged_level.yaml").write_text(level)
        asked = ["adapter=plugged_level", "rank=3", "train.lr=0.01"]
        made = plan_grid(asked, config_dirs=[str(folder.parent)])
        (found,) = [named for named in made.design.cells if not named.cell.is_base]
        return found

    return cell


def test_a_method_of_another_package_has_a_budget_and_an_identity(planned, package):
    first = planned()
    shapes = first.identity.files.linear_shapes
    found = registry.budget(first.cell, shapes)
    assert found.asked == found.got > 0
    (package / "method.py").write_text(METHOD + "# another version\n")
    second = planned()
    assert first.identity.train_key != second.identity.train_key, "its code is part of a run"
    assert "code" in second.identity.description["adapter"]


def test_the_methods_of_this_project_have_no_code_in_their_identity(package):
    made = plan_grid(["adapter=lora", "rank=3"])
    for named in made.design.cells:
        assert "code" not in named.identity.description.get("adapter", {})


@pytest.mark.parametrize(("kind", "said"), [
    ("plugged_wrong", r"adapter\.kind=plugged_wrong: plugged_package\.method:Size of the package "
                      r"plugged-package is a type, must be an ablate\.adapters\.method\.Method"),
    ("plugged_lost", r"adapter\.kind=plugged_lost: .* cannot be loaded \(ModuleNotFoundError"),
    ("plugged_toi", r"adapter\.kind=plugged_toi: not one of .* Did you mean 'plugged_toy'\?"),
])  # fmt: skip
def test_what_is_wrong_with_a_method_is_one_line(planned, kind, said):
    with pytest.raises(UserError, match=said):
        planned(LEVEL.replace("kind: plugged_toy", f"kind: {kind}"))


@pytest.fixture
def results(tmp_path):
    fake_results(plws=(0.0, 0.1), controls=False).to_parquet(tmp_path / "results.parquet")
    return tmp_path


@pytest.mark.slow
def test_a_question_of_another_package_is_on_the_page(package, results):
    study = load(results)
    page = study.report(results / "report").read_text(encoding="utf-8")
    assert 'id="by-adapter"' in page
    assert (results / "report" / "tables" / "by.csv").is_file()
    table = study.section("by-adapter").tables["by"]
    assert set(table["adapter"]) == set(study.study.rows["adapter"])


@pytest.mark.parametrize(("question", "said"), [
    ("def section(study):\n    return 1 / 0\n",
     r"question=by-adapter: plugged_package\.question of the package plugged-package failed "
     r"\(ZeroDivisionError"),
    ("", r"question=by-adapter: .* failed \(AttributeError: has no function section"),
    (QUESTION.replace('"by-adapter"', '"other"'),
     r"returned a section of the key 'other', must be None or a Section of the key 'by-adapter'"),
    ("def section(study):\n    return 5\n", r"returned 5, must be None or a Section"),
])  # fmt: skip
def test_what_is_wrong_with_a_question_is_one_line(package, results, question, said):
    (package / "question.py").write_text(question)
    with pytest.raises(AnalysisError, match=said):
        load(results).section("by-adapter")
