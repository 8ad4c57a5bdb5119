"""Named streams of random numbers, all derived from one seed.

Each use of randomness has a stream of its own, never the global generator: the order of the
examples does not depend on what the initialisation of an adapter draws, and a cell rerun alone
equals the same cell inside a sweep. Cells of one seed share their streams (blocking).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Name = str | int
Device = torch.device  # the name `torch` is a method inside the class


class Streams:
    """The random streams of one cell: each name is an independent draw from one seed.

    `sham` is the label of the A/A factor: "a" is the plain seed, any other label is another draw of
    every stream and nothing else.
    """

    def __init__(self, seed: int, sham: str = "a") -> None:
        self._root: tuple[Name, ...] = (seed,) if sham == "a" else (seed, "sham", sham)

    def _entropy(self, names: tuple[Name, ...]) -> int:
        # The type and length before each part keep ("ab", "c") and ("a", "bc"), 1 and "1" apart.
        parts = [f"{type(p).__name__}{len(str(p))}:{p}" for p in (*self._root, *names)]
        return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:16], "big")

    def seed(self, *names: Name) -> int:
        """Return the stream's seed in [0, 2^63), for an interface that takes an integer."""
        return self._entropy(names) >> 65

    def torch(self, *names: Name) -> torch.Generator:
        """Return a CPU generator at the start of the stream `names`."""
        return torch.Generator().manual_seed(self.seed(*names))

    def numpy(self, *names: Name) -> np.random.Generator:
        """Return a numpy generator at the start of the stream `names`."""
        return np.random.Generator(np.random.PCG64(self._entropy(names)))

    @contextmanager
    def global_torch(self, *names: Name, device: Device | None = None) -> Iterator[None]:
        """Run a block with torch's global generators in the stream `names`; restore them after.

        For code that takes no generator: dropout, and the initialisers of other libraries.
        """
        cuda = device is not None and device.type == "cuda"
        with torch.random.fork_rng(devices=[device] if cuda else []):
            torch.manual_seed(self.seed(*names))
            yield
