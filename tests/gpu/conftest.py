"""What all tests on a GPU share: warnings that say nothing of the code, and a clean end."""

from collections.abc import Iterator

import pytest
import torch

QUIET = (
    "ignore:Synchronization debug mode",  # a prototype of torch's
    "ignore:inner dimension",  # of toy layers is no multiple of bitsandbytes' block, and so slower
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore the warnings in `QUIET` in this folder."""
    for item in items:
        if "tests/gpu" in item.path.as_posix():
            for message in QUIET:
                item.add_marker(pytest.mark.filterwarnings(message))


@pytest.fixture(autouse=True)
def waits_again() -> Iterator[None]:
    """Let the device be waited for again after a test that forbids it."""
    yield
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")
