"""Whether this machine may have a GPU, and whether it is lost; without torch, slow to import."""

import sys
from pathlib import Path

from ablate.errors import UserError

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and Windows' under Linux

# Errors of CUDA after which every later call of the process fails too.
STICKY = (
    "illegal memory access", "cudaerrorillegaladdress", "device-side assert", "misaligned address",
    "unspecified launch failure", "illegal instruction", "invalid program counter",
    "launch timed out", "uncorrectable ecc", "hardware stack error",
)  # fmt: skip


def lost_device(error: BaseException) -> bool:
    """Return whether the process can no longer use its GPU after `error`."""
    text = str(error).lower()
    if "cuda" in text and any(words in text for words in STICKY):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and lost_device(cause)


def no_gpu() -> UserError:
    """Return the error of a GPU that is asked for and not there."""
    return UserError("execution.device=cuda: there is no GPU here; use auto or cpu")


def has_driver() -> bool:
    """Return whether the driver of a GPU may be loaded; what it drives only torch can say."""
    return sys.platform != "linux" or any(Path(file).exists() for file in DRIVERS)


def check_driver() -> None:
    """Check that the driver of a GPU may be loaded.

    Raises:
        UserError: it is not, so torch would find no GPU.
    """
    if not has_driver():
        raise no_gpu()
