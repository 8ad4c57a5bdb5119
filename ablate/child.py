"""A process of this program that another one starts, and the pipes to it.

It gets lines, and answers with lines of JSON. The end of the process that started it closes the
pipe, however it comes about.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any

CODE = (  # what is imported is what this process would import, wherever it stands
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).main(*map(int, sys.argv[3:]))"
)


class Child:
    """A process that runs `main` of a module, and the pipes to it."""

    def __init__(
        self,
        module: str,
        *numbers: int,
        env: Mapping[str, str] | None = None,
        apart: bool = False,
    ) -> None:
        """Start it.

        Args:
            module: its `main` gets the two ends of the pipes as file descriptors, then `numbers`.
            numbers: further arguments.
            env: variables of its environment that this process does not have set.
            apart: whether signals from the terminal do not reach it.
        """
        theirs_in, mine_out = os.pipe()
        mine_in, theirs_out = os.pipe()
        ends = (theirs_in, theirs_out)
        words = [json.dumps(sys.path), module, *map(str, (*ends, *numbers))]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, *words],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            env={**(env or {}), **os.environ},
            start_new_session=apart,
        )
        for end in ends:
            os.close(end)
        self.orders: IO[bytes] = os.fdopen(mine_out, "wb", buffering=0)
        self.answers: IO[bytes] = os.fdopen(mine_in, "rb", buffering=0)
        self._begun, self.silenced = b"", False  # silenced: it has closed its end

    def tell(self, line: str) -> None:
        """Send it a line."""
        with contextlib.suppress(OSError):  # it has died, which is seen next
            self.orders.write(f"{line}\n".encode())

    def read(self) -> list[dict[str, Any]]:
        """Return what it has said since; it waits where nothing was said."""
        with contextlib.suppress(OSError):
            said = os.read(self.answers.fileno(), 2**16)
            self.silenced = not said
            *lines, self._begun = (self._begun + said).split(b"\n")
            return [json.loads(line) for line in lines]
        self.silenced = True
        return []

    def last_words(self) -> Iterator[dict[str, Any]]:
        """Yield what a process that has ended said before."""
        while not self.silenced:
            yield from self.read()

    def close(self) -> None:
        """Close the pipes to a process that has ended."""
        self.orders.close()
        self.answers.close()
