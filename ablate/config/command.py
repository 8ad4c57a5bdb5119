"""The settings about a command as a whole, no cell's: they check their own values. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablate.config.schema import require
from ablate.errors import UserError

SMALLEST_VOCABULARY = 269  # of a new tokenizer: 256 bytes, its special tokens, one entry more
LARGEST_MODEL = 10**9  # parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrain:
    """The shape of a base model that `ablate pretrain` makes: of transformers' LlamaConfig."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    initializer_range: float

    def __post_init__(self) -> None:
        least = {"vocab_size": SMALLEST_VOCABULARY, "max_position_embeddings": 8}
        for name in self.__slots__:
            value, low = getattr(self, name), least.get(name, 1)
            if name == "initializer_range":
                require(0 < value <= 1, f"pretrain.{name}", value, "in (0, 1]")
            else:
                require(value >= low, f"pretrain.{name}", value, f"at least {low}")
        step = 2 * self.num_attention_heads
        allowed = f"a multiple of {step}, which is twice pretrain.num_attention_heads"
        require(self.hidden_size % step == 0, "pretrain.hidden_size", self.hidden_size, allowed)
        h, layers = self.hidden_size, self.num_hidden_layers
        size = h * (self.vocab_size + layers * (4 * h + 3 * self.intermediate_size))
        if size > LARGEST_MODEL:
            raise UserError(
                f"pretrain.*: a model of {size:,} parameters; at most {LARGEST_MODEL:,} are allowed"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a command line asks for beside its cells and its study."""

    out: str
    scale: str
    retry_failed: bool
    score_base: bool
    cell_minutes: float | None
    stop_after: int | None
    skip_illegal: bool
    report: bool
    single: bool
    rates: str | None
    pretrain: Pretrain
    workers_per_gpu: int
    gpu_gb: float | None
    bundle: str | None  # a launched job's; a command line that asks for a grid has none

    def __post_init__(self) -> None:
        require(bool(self.out.strip()), "out", self.out, "a folder")
        ok = self.workers_per_gpu > 0
        require(ok, "workers_per_gpu", self.workers_per_gpu, "at least 1")
        ok = self.gpu_gb is None or self.gpu_gb > 0
        require(ok, "gpu_gb", self.gpu_gb, "a number above 0, or null for the GPU that is here")
        ok = self.stop_after is None or self.stop_after > 0
        require(ok, "stop_after", self.stop_after, "at least 1, or null")
        ok = self.cell_minutes is None or self.cell_minutes > 0
        require(ok, "cell_minutes", self.cell_minutes, "a number above 0, or null")
        ok = self.bundle is None
        require(ok, "bundle", self.bundle, "left out: a sweep gives it to the jobs it launches")


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study's file; `config.factors` reads its scales."""

    name: str
    question: str | None = None
    figures: Any = None
    report: bool = True
    scales: Mapping[str, Any]
