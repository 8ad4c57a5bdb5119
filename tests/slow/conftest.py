"""What the slow tests share."""

import signal

import pytest

from ablate import interrupts


@pytest.fixture(scope="session", autouse=True)
def signals_as_usual():
    """Heed signals that whoever started the tests ignores: `nohup`, or a shell's &.

    What a test starts would ignore them as well, and could not be stopped by them.
    """
    for number in interrupts.SIGNALS:
        if signal.getsignal(number) == signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
