"""Records of a data set outside of memory: read once in order, then again by number.

A million short rows are 2 GB as Python objects and 200 MB here. A small data set stays in memory;
the file of a large one has no name, so that nothing is left of it however the process ends.
"""

import array
import io
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

from ablate.data.sources import Record
from ablate.errors import UserError

IN_MEMORY = 32 << 20  # bytes


class Spool:
    """Records by number, from 0, and the names of all their columns."""

    def __init__(self, found: Iterable[Record], *, in_memory: int = IN_MEMORY) -> None:
        """Read all of `found`.

        Raises:
            UserError: there is no room for them in the folder of temporary files.
        """
        self.columns: set[str] = set()
        self._ends = array.array("q", [0])
        self._file: IO[bytes] = io.BytesIO()
        end = 0
        try:
            for record in found:
                self.columns.update(record.fields)
                packed = pickle.dumps((record.place, record.fields), pickle.HIGHEST_PROTOCOL)
                self._file.write(packed)
                end += len(packed)
                self._ends.append(end)
                if end > in_memory and isinstance(self._file, io.BytesIO):
                    self._file = _on_disk(self._file)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"TMPDIR={tempfile.gettempdir()}: no room for a copy of the rows "
                f"({error.strerror}); name another folder with TMPDIR=FOLDER"
            ) from None

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> Record:
        start, end = self._ends[number], self._ends[number + 1]
        if isinstance(self._file, io.BytesIO):
            packed: bytes | memoryview = self._file.getbuffer()[start:end]
        else:
            packed = os.pread(self._file.fileno(), end - start, start)
        return Record(*pickle.loads(packed))  # written by this process, in a file without a name

    def __iter__(self) -> Iterator[Record]:
        return map(self.__getitem__, range(len(self)))


def _on_disk(file: io.BytesIO) -> IO[bytes]:
    found: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with its Spool
    found.write(file.getbuffer())
    return found
