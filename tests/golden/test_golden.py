"""Identities and loss curves against stored ones: a change of code that alters a number is seen.

The stored values were made by this code at an earlier time, so they say that nothing changed, not
that it is right; that is for the other tests.
"""

from pathlib import Path

import pytest

from ablate.config import grid
from ablate.config.compose import expand
from ablate.experiment import identity
from ablate.experiment.design import collect, design, save
from ablate.experiment.status import states
from ablate.results.store import Store
from ablate.run import run_cells
from analysis.report.build import build
from tests.golden import cells, make

ADVICE = """
A change that should not alter numbers leaves the golden values bit-identical: mend the change. One
that does raises NUMERICS_VERSION in ablate/experiment/identity.py and states its reason in
CHANGELOG.md. Only then regenerate with `python tests/golden/make.py keys` and
`python tests/golden/make.py curves`, and look at every line that they say has changed."""
SHOWN = 12  # differences told

# Another processor or library sums float32 in another order. A sum of n terms then moves by up to
# about sqrt(n) eps of its absolute terms, and each step starts from weights that the steps before
# it have moved: AdamW's first updates are lr * sign(gradient) nearly, so a gradient near zero that
# changes its sign moves a weight by 2 lr, with an effect on the loss of that tiny gradient times
# 2 lr. The difference grows about linearly over so few steps: tolerance = FACTOR * eps * step.
# Measured on one processor (AVX512 against AVX2 and the default kernels, MKL_CBWR=COMPATIBLE): at
# most 3 eps * step in the loss, 25 in the norm, a few terms of which are large and cancel. With
# another torch (2.11) on another processor under the lowest kernels: up to 180 in the norm, of
# cells whose start is a singular value decomposition or whose rates differ by 16.
EPS = 2.0**-23
FACTOR = {"loss": 16, "grad_norm": 512, "scores": 128}


def told(differences: list[str]) -> str:
    more = len(differences) - SHOWN
    lines = differences[:SHOWN] + ([f"... and {more} more"] if more > 0 else [])
    return "\n" + "\n".join(lines) + "\n" + ADVICE


# -- identities ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return cells.write_data(tmp_path_factory.mktemp("golden") / "data")


@pytest.fixture(scope="module")
def found(data):
    return make.identities(data)


def test_identities_are_as_stored(found):
    changed = make.differences(make.stored(make.KEYS)["cells"], found)
    assert not changed, told(changed)


def test_a_description_states_the_version_of_its_numerics(found):
    versions = {label: entry["description"]["numerics"] for label, entry in found.items()}
    assert set(versions.values()) == {identity.NUMERICS_VERSION}


def test_a_key_is_the_hash_of_its_stored_description():
    """A record's description is written as JSON: reading it back must give its key again."""
    for label, entry in make.stored(make.KEYS)["cells"].items():
        assert identity.digest(entry["description"]) == entry["train_key"], label


def test_a_models_files_count_wherever_they_are(found):
    here, copied = found["masking=instruction"], found["model=local model.path=DATA/model"]
    assert copied["train_key"] == here["train_key"]
    assert copied["score_keys"] == here["score_keys"]


# -- curves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cells.CURVES)
def test_curve_is_as_stored(name, data, tmp_path):
    stored = make.stored(make.CURVES)
    known, now = stored["cells"][name], make.curve(name, data, tmp_path / "out")
    changed = make.differences(known, now)
    if stored["kernel"] != make.kernel():
        changed = [line for part in known for line in beyond(part, known[part], now[part])]
    assert not changed, told(changed)


def beyond(part, known, now):
    """Return a line for each number of a curve that other hardware does not explain."""
    if part == "scores":  # after the last step
        rows = [(name, cells.STEPS, known.get(name), now.get(name)) for name in {**known, **now}]
    else:
        assert len(known) == len(now) == cells.STEPS
        pairs = zip(known, now, strict=True)
        rows = [(f"step {i}", i, *pair) for i, pair in enumerate(pairs, start=1)]
    return [
        f"{part}, {place}: stored {old}, now {new}"
        for place, step, old, new in rows
        if None in (old, new) or not near(old, new, FACTOR[part] * EPS * step)
    ]


def near(old, new, tolerance):
    return float.fromhex(new) == pytest.approx(float.fromhex(old), rel=tolerance, abs=0)


def test_a_difference_beyond_other_hardware_is_told():
    known = [(1.0).hex()] * cells.STEPS
    now = [(1 + 15 * EPS * i).hex() for i in range(1, cells.STEPS + 1)]
    assert beyond("loss", known, now) == []
    now[5] = (1 + 97 * EPS).hex()
    assert [line.partition(":")[0] for line in beyond("loss", known, now)] == ["loss, step 6"]
    assert len(beyond("scores", {"a": (1.0).hex()}, {"b": (1.0).hex()})) == 2


# -- older numerics -----------------------------------------------------------------------------

SHORT = (*cells.COMMON, "train.max_steps=2", "dataset.max_rows=32", "evaluate.heldout_rows=8")
OLD_GRID = ("masking=instruction,none", "plw=0.5", "adapter=lora,full", "rank=2", *SHORT)


def planned(version, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(identity, "NUMERICS_VERSION", version)
        return design(grid.cells(expand(OLD_GRID)), study="none")


def test_records_of_older_numerics_stay_readable(tmp_path: Path, monkeypatch):
    old = planned(0, monkeypatch)
    store = Store(tmp_path)
    store.prepare()
    save(old, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(identity, "NUMERICS_VERSION", 0)
        for key, names in old.runs.items():
            run_cells([named.cell for named in names], key, store)
    assert {store.record(key)["identity"]["numerics"] for key in store.recorded()} == {0}
    new = planned(identity.NUMERICS_VERSION, monkeypatch)
    save(new, tmp_path)  # the same grid asked for today lies beside it, not yet trained
    assert not set(new.runs) & set(old.runs)
    assert set(store.recorded()) == set(old.runs)
    by_state = {state.key: state.state for state in states(tmp_path)}
    assert by_state == dict.fromkeys(old.runs, "done") | dict.fromkeys(new.runs, "missing")
    assert build(collect(tmp_path), tmp_path / "report").is_file()
