"""A new model of random weights, and transformers kept quiet."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as progress

from ablate.streams import Streams


def initialise(config: Any, *, streams: Streams) -> PreTrainedModel:
    """Return a new float32 model of the transformers `config`, drawn from the stream "init"."""
    with streams.global_torch("init", "base"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars, and its report of weights left out, from the terminal."""
    shown, level = progress.is_progress_bar_enabled(), progress.get_verbosity()
    progress.disable_progress_bar()
    progress.set_verbosity_error()
    try:
        yield
    finally:
        progress.set_verbosity(level)
        if shown:
            progress.enable_progress_bar()
