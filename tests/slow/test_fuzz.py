"""The random input of `tests/unit/test_fuzz.py`, ten times as much.

The draws are the same every time; `ABLATE_FUZZ_SEED=N` takes others.
"""

import os
import subprocess
import sys

import pytest

from tests.imports import ROOT


@pytest.mark.slow
def test_ten_times_as_many_draws():
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    words += ["tests/unit/test_fuzz.py", "-k", "read or composes"]
    words += ["--hypothesis-seed", os.environ.get("ABLATE_FUZZ_SEED", "1")]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"ABLATE_FUZZ": "10"}
    )
    assert done.returncode == 0, done.stdout[-4000:]
