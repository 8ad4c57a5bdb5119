"""Data of a page in one text: JSON beside typed arrays, deflated and written in base64.

The text decodes to zlib data, which `DecompressionStream("deflate")` of a browser reads: four bytes
with the length of the JSON (little endian), the JSON as UTF-8, zeros up to a multiple of eight, and
the arrays. In the JSON an array is {"$": [kind, first byte behind the JSON, number of values]}.
"""

import base64
import json
import zlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["u8", "u16", "i32", "f32", "f64"]
KINDS: dict[Kind, str] = {"u8": "<u1", "u16": "<u2", "i32": "<i4", "f32": "<f4", "f64": "<f8"}
ALIGNED = 8  # bytes: a typed array of a browser must begin at a multiple of its own size


class Packer:
    """Collects arrays for a packed text."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def array(self, values: npt.ArrayLike, kind: Kind) -> dict[str, Any]:
        """Return what stands for an array in the JSON.

        Raises:
            OverflowError: a whole number does not fit into `kind`.
        """
        given = np.asarray(values).ravel()
        found = given.astype(KINDS[kind])
        if kind in ("u8", "u16", "i32") and not np.array_equal(found, given):
            raise OverflowError(f"values from {given.min()} to {given.max()} are no {kind}")
        data = found.tobytes()
        place = self._size
        padding = -len(data) % ALIGNED
        self._parts.append(data + bytes(padding))
        self._size += len(data) + padding
        return {"$": [kind, place, len(found)]}

    def codes(self, values: npt.ArrayLike) -> dict[str, Any]:
        """Return what stands for an array of counts or codes, in the smallest kind that has room.

        Raises:
            OverflowError: a negative number, or one beyond 32 bits.
        """
        given = np.asarray(values)
        most = int(given.max(initial=0))
        return self.array(given, "u8" if most < 2**8 else "u16" if most < 2**16 else "i32")

    def text(self, content: Any) -> str:
        """Return the packed text of a JSON-ready value with the arrays that were collected."""
        head = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        data = head.encode()
        padding = bytes(-(4 + len(data)) % ALIGNED)
        body = b"".join([len(data).to_bytes(4, "little"), data, padding, *self._parts])
        return base64.b64encode(zlib.compress(body)).decode()


def unpacked(text: str) -> Any:
    """Return the content of a packed text, arrays as numpy arrays."""
    body = zlib.decompress(base64.b64decode(text))
    size = int.from_bytes(body[:4], "little")
    start = 4 + size + -(4 + size) % ALIGNED

    def found(value: dict[str, Any]) -> Any:
        if set(value) != {"$"}:
            return value
        kind, place, count = value["$"]
        return np.frombuffer(body, KINDS[kind], count, start + place)

    return json.loads(body[4 : 4 + size], object_hook=found)
