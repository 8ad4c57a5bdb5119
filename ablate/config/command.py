"""The settings about a command as a whole, no cell's: they check their own values. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ablate.config.schema import require
from ablate.errors import UserError

SMALLEST_VOCABULARY = 269  # of a new tokenizer: 256 bytes, its special tokens, one entry more
LARGEST_MODEL = 10**9  # parameters
MOST_POSITIONS = 2**20  # of a new base model
MOST_WORKERS = 64  # on one GPU
LARGEST_GPU = 10_000  # GB
LONGEST_CELL = 10**6  # minutes, two years
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


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
        most, positions = MOST_POSITIONS, self.max_position_embeddings
        ok = positions <= most
        require(ok, "pretrain.max_position_embeddings", positions, f"at most {most}")
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
    tracker: Literal["none"] | Tracker | tuple[Tracker, ...]
    tracker_project: str | None
    workers_per_gpu: int
    gpu_gb: float | None
    bundle: str | None  # a launched job's; a command line that asks for a grid has none

    def __post_init__(self) -> None:
        require(bool(self.out.strip()), "out", self.out, "a folder")
        ok = 0 < self.workers_per_gpu <= MOST_WORKERS
        allowed = f"at least 1 and at most {MOST_WORKERS}"
        require(ok, "workers_per_gpu", self.workers_per_gpu, allowed)
        ok = self.gpu_gb is None or 0 < self.gpu_gb <= LARGEST_GPU
        allowed = f"a number above 0, at most {LARGEST_GPU}, or null for the GPU that is here"
        require(ok, "gpu_gb", self.gpu_gb, allowed)
        named = self.tracker_project
        ok = named is None or bool(named.strip())
        require(ok, "tracker_project", named, "a name, or null")
        ok = self.stop_after is None or self.stop_after > 0
        require(ok, "stop_after", self.stop_after, "at least 1, or null")
        ok = self.cell_minutes is None or 0 < self.cell_minutes <= LONGEST_CELL
        allowed = f"a number above 0, at most {LONGEST_CELL}, or null"
        require(ok, "cell_minutes", self.cell_minutes, allowed)
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
