"""What an initialisation may use, and the points at which it may act."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from torch import nn

from ablate.adapters.init.calibration import Calibration
from ablate.adapters.options import Options
from ablate.streams import Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class InitContext:
    """What an initialisation may use.

    streams: the cell's random streams.
    calibration: the first batches of the run and the base model's activations and gradients.
    options: all options of the init.
    """

    streams: Streams
    calibration: Calibration
    options: Options = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InitSteps:
    """The points at which an initialisation may act; each does nothing by default.

    settings: from the options of the init, further arguments of PEFT's configuration.
    before: called with the base model and the configuration, before the adapter is added.
    after: called with the model once the adapter is in place.
    quiet: the beginning of a PEFT warning that is handled here and not shown.
    """

    settings: Callable[[Options], dict[str, Any]] = lambda options: {}
    before: Callable[[nn.Module, PeftConfig, InitContext], None] = lambda model, config, context: (
        None
    )
    after: Callable[[nn.Module, InitContext], None] = lambda module, context: None
    quiet: str = ""
