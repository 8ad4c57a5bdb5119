"""What is stored under tests/oracles is what its R scripts say, where R is at hand.

The script of the generalised models has a test of its own.
"""

import json
import math
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

ORACLES = Path(__file__).parents[1] / "oracles"
ELSEWHERE = {"glmm_models"}
SCRIPTS = sorted(p for p in ORACLES.glob("*.R") if p.stem not in ELSEWHERE)
# Other BLAS and compiler, other last digits; a search may end elsewhere on a flat top.
RELATIVE, ABSOLUTE = 1e-4, 1e-5
LOOSE = {"dunnett": 2e-3, "low": 2e-3, "high": 2e-3}  # quasi-random sums; interpolated profiles
ZERO = 1e-3  # what is zero but for where the search ended: modes and SDs of a singular fit


def differences(new, old, *, at=""):
    """Yield where two trees of JSON differ by more than their tolerance."""
    if isinstance(old, dict) and isinstance(new, dict) and list(old) == list(new):
        for key in old:
            yield from differences(new[key], old[key], at=f"{at}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(new, old, strict=True)):
            yield from differences(*pair, at=f"{at}/{i}")
    elif not _same(new, old, at):
        yield f"{at}: {new} is not {old}"


def _same(new, old, at):
    if at.endswith("/corr") and "NaN" in (new, old):
        return True  # beside a variance of zero, or nearly: R's search ends on either side
    if (
        isinstance(old, bool)
        or not isinstance(old, int | float)
        or not isinstance(new, int | float)
    ):
        return new == old
    relative = next((LOOSE[part] for part in at.split("/") if part in LOOSE), RELATIVE)
    zero = ZERO if "/modes/" in at or at.endswith("/sd") or relative > RELATIVE else ABSOLUTE
    return math.isclose(new, old, rel_tol=relative, abs_tol=zero)


def test_a_difference_is_seen():
    old = {"a": [1.0, 2.0], "b": {"low": 1.0, "name": "x"}, "c": None}
    assert list(differences(old, old)) == []
    for change in (
        {**old, "a": [1.0, 2.001]},
        {**old, "a": [1.0]},
        {**old, "b": {"low": 1.01, "name": "x"}},
        {**old, "b": {"low": 1.0, "name": "y"}},
        {**old, "c": 0.0},
        {"a": old["a"], "b": old["b"]},
    ):
        assert len(list(differences(change, old))) == 1


def test_every_stored_oracle_has_its_script():
    stems = {path.stem for path in SCRIPTS} | ELSEWHERE
    assert {path.stem for path in ORACLES.glob("*.json")} <= stems
    assert len(SCRIPTS) >= 3


@pytest.mark.parametrize("script", SCRIPTS, ids=[p.stem for p in SCRIPTS])
def test_r_says_what_is_stored(script, tmp_path):
    if (rscript := shutil.which("Rscript")) is None:
        pytest.skip("no Rscript")
    done = subprocess.run(
        [rscript, str(script), str(tmp_path)], capture_output=True, text=True, check=False
    )
    if "there is no package called" in done.stderr:
        pytest.skip("R without " + done.stderr.split("there is no package called")[1].split()[0])
    assert done.returncode == 0, done.stderr
    made = sorted(p.name for p in tmp_path.iterdir())
    assert f"{script.stem}.json" in made
    for name in made:
        if name.endswith(".csv"):
            pd.testing.assert_frame_equal(
                pd.read_csv(tmp_path / name), pd.read_csv(ORACLES / name), rtol=1e-6, atol=1e-6
            )
        else:
            new, old = (json.loads((where / name).read_text()) for where in (tmp_path, ORACLES))
            assert list(differences(new, old)) == []
