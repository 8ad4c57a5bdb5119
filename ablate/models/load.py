"""The base model and its tokenizer from a folder in the hub's format, and models made from scratch.

A grid trains hundreds of cells on a few base models, so each base is read once per process; a cell
trains a copy of it.
"""

import copy
import functools
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from ablate.data.backend import SAFE, transformers_tokenizer
from ablate.errors import UserError
from ablate.models.files import TEXT_KEYS, has_text_part
from ablate.models.gpu import no_gpu
from ablate.models.initial import quiet

if TYPE_CHECKING:
    from ablate.models.files import ModelFiles

# A pristine copy doubles the memory of a base: above this size it is read again instead.
KEEP_BYTES = 2**30
CPU = torch.device("cpu")


def device_of(name: str) -> torch.device:
    """Return the device that `execution.device` names; "auto" is a GPU if there is one.

    Raises:
        UserError: there is no such device here.
    """
    available = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"execution.device={name}: must be auto, cpu or cuda")
    if name == "cuda" and not available:
        raise no_gpu()
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def load(
    files: "ModelFiles", precision: str = "fp32", *, device: torch.device = CPU
) -> PreTrainedModel:
    """Return a copy of the base model in `files` on `device`, which the caller may change.

    Args:
        files: where it is.
        precision: of its weights, as `base_precision` has it: int8 after LLM.int8 (arXiv
            2208.07339), nf4 with quantised constants as in QLoRA (2305.14314).
        device: where to; a GPU for int8 and nf4.

    Raises:
        UserError: the folder holds no causal language model, or it cannot be quantised here.
    """
    if precision in ("int8", "nf4"):
        return _read(files.folder, **_quantised(precision, device))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if files.parameters * 4 > KEEP_BYTES:
        direct = {} if device.type == "cpu" else {"device_map": {"": device}}  # no copy on the CPU
        return _read(files.folder, dtype=dtype, **direct)
    return copy.deepcopy(_pristine(files.folder, files.content_hash, dtype)).to(device)


@functools.lru_cache(maxsize=8)
def _pristine(folder: Path, content_hash: str, dtype: torch.dtype) -> PreTrainedModel:
    return _read(folder, dtype=dtype)


def _quantised(precision: str, device: torch.device) -> dict[str, Any]:
    """Return the arguments of from_pretrained that quantise the linear layers."""
    if device.type != "cuda":
        raise UserError(
            f"base_precision={precision}: needs a GPU, and the run is on {device.type}; use fp32 "
            "or bf16"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"base_precision={precision}: needs bitsandbytes, which is not installed; "
            'pip install "ablate[gpu]"'
        )
    # LLM.int8 computes in float16 for any input, and would log it at every layer and step.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    settings: dict[str, dict[str, Any]] = {
        "int8": {"load_in_8bit": True},
        "nf4": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.float32,
        },
    }
    return {
        "quantization_config": BitsAndBytesConfig(**settings[precision]),
        "dtype": torch.float32,  # of all else: what is computed in is train.precision
        "device_map": {"": device},
    }


@contextmanager
def computing_in(model: Any, precision: str) -> Iterator[None]:
    """Run a block in which the 4-bit layers of `model` compute in `precision` (fp32 or bf16).

    They are no layers that autocast knows, and compute in fp32 otherwise.
    """
    found = (m for m in model.modules() if type(m).__name__ == "Linear4bit")
    packed = [m for m in found if hasattr(m, "compute_dtype")]  # PEFT's layer around one has none
    before = [(m.compute_dtype, m.weight.quant_state.dtype) for m in packed]
    if precision == "bf16":
        for module in packed:
            module.compute_dtype = module.weight.quant_state.dtype = torch.bfloat16
    try:
        yield
    finally:
        for module, dtypes in zip(packed, before, strict=True):
            module.compute_dtype, module.weight.quant_state.dtype = dtypes


def _read(folder: Path, **settings: Any) -> PreTrainedModel:
    try:
        if has_text_part(folder):
            text = AutoConfig.from_pretrained(folder, **SAFE).get_text_config()
            settings |= {"config": text, "key_mapping": TEXT_KEYS}
        with quiet():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, **SAFE, **settings
            )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"model.path={folder}: no causal language model ({first})") from None
    model.eval()
    return model


@functools.lru_cache(maxsize=8)
def load_tokenizer(folder: Path, chat_template: str | None = None) -> Tokenizer:
    """Return the tokenizer in `folder`; `chat_template` is a file that replaces its own."""
    tokenizer: Tokenizer = transformers_tokenizer(folder)
    if chat_template is not None:
        tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
    return tokenizer


@contextmanager
def checkpointing(model: Any, on: bool) -> Iterator[None]:
    """Run a block with the layers of `model` recomputed in the backward pass, if `on`."""
    if not on:
        yield
        return
    # transformers 5 renamed both on the way; an adapter's module passes the calls on to the base.
    new = hasattr(model, "activation_checkpointing_enable")
    prefix = "activation_checkpointing" if new else "gradient_checkpointing"
    start, stop = f"{prefix}_enable", f"{prefix}_disable"
    getattr(model, start)({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, stop)()
