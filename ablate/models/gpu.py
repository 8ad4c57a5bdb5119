"""Whether this machine may have a GPU, without torch, which takes seconds to import."""

import sys
from pathlib import Path

from ablate.errors import UserError

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and Windows' under Linux


def no_gpu() -> UserError:
    """Return the error of a GPU that is asked for and not there."""
    return UserError("execution.device=cuda: there is no GPU here; use auto or cpu")


def check_driver() -> None:
    """Check that the driver of a GPU is loaded; what it drives only torch can say.

    Raises:
        UserError: there is none, so torch would find no GPU.
    """
    if sys.platform == "linux" and not any(Path(file).exists() for file in DRIVERS):
        raise no_gpu()
