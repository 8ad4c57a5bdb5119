"""The notebooks run from top to bottom, on the data they ship with, and say what they promise."""

import re
import shutil
import sys
from decimal import Decimal
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")

pytestmark = [
    pytest.mark.slow,
    # Of the kernel's client and its sockets, not of ours.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:RuntimeWarning:zmq.*"),
    pytest.mark.filterwarnings("ignore:unclosed.*:ResourceWarning"),
]


def run(path, folder):
    """Return the executed notebook; any cell that raises, raises here."""
    for beside in ("data", "refits"):
        shutil.copytree(FOLDER / beside, folder / beside)
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    return notebook


def outputs(notebook):
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


def figures_of(notebook):
    return len([out for out in outputs(notebook) if "image/png" in out.get("data", {})])


def text_of(notebook):
    return "".join(out.get("text", "") for out in outputs(notebook))


@pytest.fixture(autouse=True)
def own_kernel(monkeypatch):
    """The kernel imports this checkout, whatever is installed."""
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_notebooks_are_numbered_and_all_name_a_kernel():
    assert [int(p.stem[:2]) for p in NOTEBOOKS] == [*range(1, len(NOTEBOOKS) + 1)]
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"
        assert sys.prefix not in path.read_text(encoding="utf-8")
        assert str(FOLDER.parent) not in path.read_text(encoding="utf-8")


def test_a_study_in_five_minutes(tmp_path):
    notebook = run(FOLDER / "01_a_study_in_five_minutes.ipynb", tmp_path)
    said = text_of(notebook)
    assert "Linear mixed model fitted by REML" in said
    assert "'lora r8'" in said
    assert "index.html" in said
    figures = [out for out in outputs(notebook) if "image/png" in out.get("data", {})]
    assert len(figures) == 1
    tables = [out for out in outputs(notebook) if "text/html" in out.get("data", {})]
    assert len(tables) >= 3


def test_your_own_table(tmp_path):
    notebook = run(FOLDER / "02_your_own_table.ipynb", tmp_path)
    said = text_of(notebook)
    assert "converged: True" in said
    assert "Did you mean 'mean'?" in said
    assert "coefficients.csv" in said
    assert any("image/png" in out.get("data", {}) for out in outputs(notebook))


def assert_same_numbers(now, stored):
    """Words and whole numbers are equal, other numbers within one unit of their last digit.

    Another processor may round a number at a border to the other side.
    """
    assert NUMBER.sub("#", now) == NUMBER.sub("#", stored)
    for one, other in zip(NUMBER.findall(now), NUMBER.findall(stored), strict=True):
        exponent = Decimal(other).as_tuple().exponent
        unit = Decimal(10) ** exponent if exponent < 0 else 0
        assert abs(Decimal(one) - Decimal(other)) <= unit, f"stored {other}, now {one}"


def test_numbers_are_compared_as_numbers():
    assert_same_numbers("a +1.49 (0 of 7), p = 1.2e-05", "a +1.50 (0 of 7), p = 1.1e-05")
    for wrong in ("a +1.48 (0 of 7)", "a +1.50 (1 of 7)", "b +1.50 (0 of 7)", "a +1.50 (0 of 7) 1"):
        with pytest.raises(AssertionError):
            assert_same_numbers(wrong, "a +1.50 (0 of 7)")


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)
def test_a_study_or_a_published_table_fitted_again(path, tmp_path):
    """What is stored in the notebook is what it says when it is run."""
    fresh, stored = run(path, tmp_path), nbformat.read(path, as_version=4)
    assert_same_numbers(text_of(fresh), text_of(stored))
    assert figures_of(fresh) == figures_of(stored) > 0
