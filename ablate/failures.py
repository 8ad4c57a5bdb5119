"""What is recorded of an error that ended a cell."""

import traceback
from typing import Any

from ablate.errors import UserError
from ablate.models.gpu import lost_device
from ablate.results.log import recent


def described(error: BaseException) -> dict[str, Any]:
    """Return kind, line, traceback and last log lines of an error; called where it is handled."""
    text = str(error)
    if not isinstance(error, UserError):  # such an error says by itself what is wrong
        text = traceback.format_exception_only(error)[-1]
    return {
        "kind": "device" if lost_device(error) else getattr(error, "kind", "error"),
        "error": text.strip().splitlines()[-1],
        "traceback": traceback.format_exc(),
        "log": recent(),
    }
