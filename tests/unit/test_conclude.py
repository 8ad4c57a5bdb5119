"""The end of a sweep: what it says while the report is written, and when that is stopped."""

import signal
from types import SimpleNamespace

import pytest

from ablate import app, interrupts
from ablate.sweep import Outcome


def test_a_stop_while_the_report_is_written_says_how_to_write_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(app, "_report", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    request = SimpleNamespace(
        out=tmp_path, grid=SimpleNamespace(study={"name": "s"}), settings={"report": True}
    )
    outcome = Outcome(
        out=tmp_path, total=1, found=1, trained=0, scored=0, failed={}, seconds=1.0,
        processor_seconds=1.0, unscored={},
    )  # fmt: skip
    with pytest.raises(interrupts.Interrupted):
        app.conclude(request, outcome)
    told = " ".join(capsys.readouterr().out.split())
    assert "writing the report into" in told
    assert f"report not written; `ablate report {tmp_path}` writes it" in told
