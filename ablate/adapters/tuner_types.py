"""This project's own PEFT tuner types, and their registration with PEFT."""

import enum

from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner


class TunerType(str, enum.Enum):  # noqa: UP042  PEFT writes the value into JSON as a plain string
    """The names of this project's tuner types, in addition to PEFT's own."""

    MORA = "MORA"
    REMORA = "REMORA"
    RELORA = "RELORA"
    THREE_FACTOR = "THREE_FACTOR"


def register(kind: TunerType, config: type[PeftConfig], model: type[BaseTuner]) -> None:
    """Register a tuner type with PEFT, whose own function refuses names outside its enum."""
    PEFT_TYPE_TO_CONFIG_MAPPING[kind] = config
    PEFT_TYPE_TO_TUNER_MAPPING[kind] = model
    PEFT_TYPE_TO_PREFIX_MAPPING[kind] = model.prefix
