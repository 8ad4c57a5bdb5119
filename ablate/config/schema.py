"""The typed configuration of one cell: frozen dataclasses that check their own values.

A value out of range is one line that names the setting. Nothing here imports torch, so that
plans, status and reports start quickly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ablate.errors import UserError, unknown
from ablate.paths import check_path
from ablate.roles import DETAILS, MASKED_ROLES

TEMPLATES = ("alpaca", "compact", "chat", "plain")
Weight = float | Literal["plw"]
Interval = tuple[float, float]
Precision = Literal["fp32", "bf16"]
LONGEST_ANSWER = 2**17  # tokens, as long as the longest contexts
MOST_SHOTS = 1000
MOST_THREADS = 1024
MOST_LANES = 1024
LARGEST_EXPONENT = 100  # of a token rule: with it a token of probability 0.95 has a factor of 0.006
SIZES = ("rows", "prompt", "completion", "text")  # of a data set; the last three mean tokens a row
TOKEN_RULES = {  # `loss.token_rule`: the exponent that it has in its source
    "none": 0.0, "dft": 1.0, "power": 10.0, "focal": 2.0, "focal_detached": 2.0, "eaft": 1.0,
}  # fmt: skip


def require(ok: bool, setting: str, value: object, allowed: str) -> None:
    """Raise the one-line error of a `setting` unless its value is `ok`."""
    if not ok:
        raise UserError(f"{setting}={value}: must be {allowed}")


def _or_null(default: object) -> str:
    """Return what the message of a setting adds whose default is null."""
    return ", or null" if default is None else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """A masking mode: for each role a number in [0, 1] or "plw".

    Details (`ablate.roles.Detail`) that the mode names have a weight of their own, others that of
    their role. Answers that `turns` leaves out weigh as instructions do.
    """

    name: str
    weights: Mapping[str, Weight]
    turns: Literal["all", "first", "last"] | tuple[int, ...] = "all"  # negative: from the last
    permute: bool = False  # placebo: the row's weights in a seeded random order
    first_header_only: bool = False  # im_released: weight 0 on BOS and the first role header only

    def __post_init__(self) -> None:
        for role in self.weights:
            if role not in MASKED_ROLES + DETAILS:
                known = MASKED_ROLES + DETAILS
                raise unknown(f"masking.weights.{role}", self.weights[role], known)
        for role in dict.fromkeys((*MASKED_ROLES, *self.weights)):
            given = "given: a number in [0, 1] or plw"
            require(role in self.weights, f"masking.weights.{role}", None, given)
            weight = self.weights[role]
            ok = weight == "plw" or (isinstance(weight, float) and 0 <= weight <= 1)
            require(ok, f"masking.weights.{role}", weight, "a number in [0, 1] or plw")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What the summed token losses are divided by, over how many examples, and each token's loss.

    A token rule (`ablate.objective.TokenRule`) acts on the weighted tokens of its scope.
    """

    normaliser: Literal["weight", "completion", "tokens", "nonzero", "examples"] = "weight"
    scope: Literal["batch", "example", "microbatch"] = "batch"
    label_smoothing: float = 0.0
    token_rule: Literal["none", "dft", "power", "focal", "focal_detached", "eaft"] = "none"
    token_rule_exponent: float | None = None  # None: as in the rule's source, `TOKEN_RULES`
    token_rule_scope: Literal["all", "completion"] = "all"

    def __post_init__(self) -> None:
        ok = 0 <= self.label_smoothing < 1
        require(ok, "loss.label_smoothing", self.label_smoothing, "in [0, 1)")
        exponent = self.token_rule_exponent
        ok = exponent is None or 0 <= exponent <= LARGEST_EXPONENT
        allowed = f"at least 0 and at most {LARGEST_EXPONENT}, or null: as in the rule's source"
        require(ok, "loss.token_rule_exponent", exponent, allowed)
        ok = self.token_rule == "none" or not self.label_smoothing
        allowed = f"0 with loss.token_rule={self.token_rule}, which knows one right token"
        require(ok, "loss.label_smoothing", self.label_smoothing, allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter level: a row of `ablate.adapters.registry` and that method's own options."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Init:
    """How an adapter's weights start: a row of `ablate.adapters.init.spec` and its options."""

    name: str = "default"
    kind: str = "default"  # the method's own start
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """The optimizer: a row of `ablate.adapters.optimizers` and its options."""

    name: str = "adamw"
    kind: str = "adamw"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which matrices an adapter changes: by the part of a layer, and by layer."""

    name: str = "all"
    modules: Literal["all", "attention", "mlp"] | tuple[str, ...] = "all"
    layers: Literal["all"] | tuple[int, ...] = "all"  # negative numbers count from the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Regulariser:
    """What holds a fine-tuned model back, beside the loss weights; each is off by default.

    Where `weight_decay`, `label_smoothing` or `adapter_dropout` is null, `train.weight_decay`,
    `loss.label_smoothing` or the adapter's own option stands.
    """

    name: str = "none"
    weight_decay: float | None = None
    label_smoothing: float | None = None
    adapter_dropout: float | None = None
    rank_dropout: float = 0.0  # DropLoRA: a fresh mask over the rank at each step
    attention_dropout: float = 0.0  # 0: as the model has it
    neftune: float = 0.0  # noise alpha on the embedded tokens, arXiv 2310.05914
    minkowski: float = 0.0  # weight of the distance to the base weights
    minkowski_p: float = 2.0
    kl: float = 0.0  # weight of the full-vocabulary KL divergence to the base's predictions

    def __post_init__(self) -> None:
        usual = {own.name: own.default for own in fields(self)}
        for name in ("label_smoothing", "adapter_dropout", "rank_dropout", "attention_dropout"):
            value = getattr(self, name)
            ok = value is None or 0 <= value < 1
            require(ok, f"regulariser.{name}", value, "in [0, 1)" + _or_null(usual[name]))
        for name in ("weight_decay", "neftune", "minkowski", "kl"):
            value = getattr(self, name)
            allowed = "at least 0" + _or_null(usual[name])
            require(value is None or value >= 0, f"regulariser.{name}", value, allowed)
        ok = self.minkowski_p >= 1
        require(ok, "regulariser.minkowski_p", self.minkowski_p, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Shares of the rows, in a fixed order that no seed changes; [0.0, 0.9] is the first 90 %."""

    train: Interval = (0.0, 0.9)
    validation: Interval = (0.9, 0.95)
    test: Interval = (0.95, 1.0)

    def __post_init__(self) -> None:
        ends = 0.0
        for name in ("train", "validation", "test"):
            low, high = getattr(self, name)
            require(0 <= low <= high <= 1, f"dataset.splits.{name}", [low, high], "in [0, 1]")
            require(
                low >= ends - 1e-12 or low == high,
                f"dataset.splits.{name}",
                [low, high],
                "after the split before it: a row may be seen once only; give all three, "
                "an empty part as [1, 1]",
            )
            ends = max(ends, high)
        low, high = self.train
        require(low < high, "dataset.splits.train", [low, high], "a part that holds rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A set of training rows: where they are, how they are read and how they become text."""

    name: str
    source: Literal["micro", "hub", "local"]
    path: str
    subset: str | None = None
    data_dir: str | None = None  # of the hub's repository: the folder that is read
    revision: str | None = None
    split: str = "train"
    format: Literal["auto", "alpaca", "prompt_completion", "messages", "text"] = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    template: str = "alpaca"  # one of TEMPLATES, or a YAML file
    turns: Literal["all", "last"] = "all"
    splits: Splits = field(default_factory=Splits)
    max_rows: int | None = None
    on_bad_row: Literal["error", "drop"] = "error"  # a row that is no example of its format
    system: Literal["keep", "fold", "drop"] = "keep"  # fold: into the first request
    invert_prompt: bool = False  # the output becomes the input, the instruction the target
    shuffle_prompts: bool = False  # control: every completion gets another row's prompt
    options: Mapping[str, Any] = field(default_factory=dict)  # the micro generator's free factors
    published: Mapping[str, float] = field(default_factory=dict)  # SIZES, for a plan without rows

    def __post_init__(self) -> None:
        for name, size in self.published.items():
            if name not in SIZES:
                raise unknown(f"dataset.published.{name}", size, SIZES)
            require(size > 0, f"dataset.published.{name}", size, "a number above 0")
        if self.template not in TEMPLATES and not self.template.endswith((".yaml", ".yml")):
            raise unknown("dataset.template", self.template, [*TEMPLATES, "FILE.yaml"])
        require(bool(self.path), "dataset.path", self.path, "a file, a folder or a hub id")
        check_path("dataset.path", self.path)
        check_path("dataset.template", self.template)
        ok = self.max_rows is None or self.max_rows > 0
        require(ok, "dataset.max_rows", self.max_rows, "a positive number of rows, or null for all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A base model: a causal language model in the hub's folder format."""

    name: str
    source: Literal["micro", "hub", "local", "untrained"]
    path: str  # of an untrained one, the model whose tokenizer it takes
    revision: str | None = None
    chat_template: str | None = None  # a file that overrides the tokenizer's own
    shape: Mapping[str, Any] = field(default_factory=dict)  # of a plan without the files; untrained

    def __post_init__(self) -> None:
        require(bool(self.path), "model.path", self.path, "a folder or a hub id")
        check_path("model.path", self.path)
        check_path("model.chat_template", self.chat_template or "")
        given = "given with model.source=untrained: model_type and the sizes of its configuration"
        ok = self.source != "untrained" or "model_type" in self.shape
        require(ok, "model.shape", dict(self.shape), given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """The optimiser, its schedule and the batch: everything that changes the trained weights."""

    name: str
    lr: float | Literal["tuned"]
    untuned: bool = False  # set by the design: the rate is a default that nobody tuned
    full_rate: bool = False  # set by the design: an adapter was given a rate of full fine-tuning
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine", "trapezoid"] = "cosine"
    warmup_ratio: float = 0.03
    warmup_steps: int | None = None  # instead of the ratio: the same for runs of any length
    cooldown_ratio: float = 0.2  # of a trapezoid: the last steps, over which the rate falls to 0
    min_lr_ratio: float = 0.0  # where a cosine ends, of the highest rate
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 16
    batch_unit: Literal["examples", "tokens"] = "examples"
    clip: float | None = 1.0
    max_length: int = 256
    boundary: Literal["offset", "segment"] = "offset"
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        ok = self.lr == "tuned" or (isinstance(self.lr, float) and 0 < self.lr < 10)
        require(ok, "train.lr", self.lr, "a number in (0, 10) or tuned")
        require(0 < self.epochs <= 10_000, "train.epochs", self.epochs, "above 0, at most 10000")
        require(self.batch_size > 0, "train.batch_size", self.batch_size, "at least 1")
        require(self.max_length >= 8, "train.max_length", self.max_length, "at least 8 tokens")
        require(0 <= self.warmup_ratio < 1, "train.warmup_ratio", self.warmup_ratio, "in [0, 1)")
        ok = self.warmup_steps is None or self.warmup_steps >= 0
        require(ok, "train.warmup_steps", self.warmup_steps, "at least 0, or null for the ratio")
        ok = 0 < self.cooldown_ratio <= 1
        require(ok, "train.cooldown_ratio", self.cooldown_ratio, "above 0, at most 1")
        require(0 <= self.min_lr_ratio < 1, "train.min_lr_ratio", self.min_lr_ratio, "in [0, 1)")
        ok = self.schedule == "cosine" or not self.min_lr_ratio
        allowed = f"0 with train.schedule={self.schedule}; a cosine alone has a floor"
        require(ok, "train.min_lr_ratio", self.min_lr_ratio, allowed)
        require(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "at least 0")
        require(self.eps > 0, "train.eps", self.eps, "positive")
        for beta in self.betas:
            require(0 <= beta < 1, "train.betas", list(self.betas), "two numbers in [0, 1)")
        ok = self.clip is None or self.clip > 0
        require(ok, "train.clip", self.clip, "positive, or null for no clipping")
        ok = self.max_steps is None or self.max_steps > 0
        require(ok, "train.max_steps", self.max_steps, "at least 1, or null")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """What is scored after training."""

    name: str
    tasks: tuple[str, ...] = ()
    limit: int | None = None  # items a task: the first ones
    items: str | None = None  # a table of tasks and items: those alone are scored
    chosen: Mapping[str, tuple[int, ...]] | None = None  # by task, from `items`, set by the design
    num_fewshot: int | Mapping[str, int] | None = None  # all, by task, or as the task says
    fewshot_as_multiturn: bool = True  # shots of a chat prompt are turns of their own
    heldout: tuple[Literal["validation", "test"], ...] = ("test",)
    heldout_rows: int = 200
    measures: tuple[str, ...] = ()
    measure_rows: int = 64  # training prompts generated from for the memorisation measure
    max_new_tokens: int | None = None  # None: as the task says
    run_code: bool = False  # consent to benchmarks that run what the model writes
    precision: Precision = "fp32"  # of the forward passes; fp32: as the weights are

    def shots(self, task: str) -> int | None:
        """Return the few-shot examples before an item of `task`; None: as the task says."""
        shots = self.num_fewshot
        return shots if shots is None or isinstance(shots, int) else shots.get(task)

    def __post_init__(self) -> None:
        ok = self.limit is None or self.limit > 0
        require(ok, "evaluate.limit", self.limit, "a positive number of items, or null for all")
        ok = self.items is None or self.limit is None
        require(ok, "evaluate.limit", self.limit, "null beside evaluate.items, which chooses items")
        ok = self.items is not None or self.chosen is None
        require(ok, "evaluate.chosen", self.chosen, "null: it is made from evaluate.items")
        require(self.items != "", "evaluate.items", self.items, "a file, or null for all items")
        check_path("evaluate.items", self.items or "")
        require(self.heldout_rows > 0, "evaluate.heldout_rows", self.heldout_rows, "at least 1")
        require(self.measure_rows > 0, "evaluate.measure_rows", self.measure_rows, "at least 1")
        most = self.max_new_tokens
        allowed = "at least 1, or null: as the task says"
        require(most is None or most > 0, "evaluate.max_new_tokens", most, allowed)
        ok = most is None or most <= LONGEST_ANSWER
        require(ok, "evaluate.max_new_tokens", most, f"at most {LONGEST_ANSWER}")
        shots = self.num_fewshot
        by_task = shots if isinstance(shots, Mapping) else {"": shots}
        for task, count in by_task.items():
            name = f"evaluate.num_fewshot{task and f'.{task}'}"
            allowed = "at least 0" + ("" if task else ", or null: as the task says")
            require(count is None or count >= 0, name, count, allowed)
            ok = count is None or count <= MOST_SHOTS
            require(ok, name, count, f"at most {MOST_SHOTS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a cell is computed, not what: recorded, but no part of its identity."""

    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1  # that one cell is computed on: a process for each, on one machine
    sharding: Literal["none", "full"] = "none"  # none: whole copies (DDP) | full: parts (FSDP2)
    # Rows a forward pass; auto: the optimiser step, or as much of it as fits; None: all of it
    micro_batch_size: int | Literal["auto"] | None = "auto"
    micro_batch_tokens: int | None = None  # tokens a forward pass at most, padding included
    layout: Literal["auto", "padded", "packed"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False  # the model's repeated blocks, while it trains
    lanes: int = 1  # most cells that a worker trains side by side
    offload_optimizer: bool = False  # what trains of the base: masters and moments on the CPU
    eval_batch_size: int = 64  # rows a forward pass of scoring, at most
    eval_batch_tokens: int = 2**15  # its tokens, at most: long prompts come in small batches
    keep_weights_mb: float = 64.0  # trained weights up to this size stay beside the record
    checkpoint_minutes: float | None = 30.0  # of training between two checkpoints; None: no such
    checkpoints_kept: int = 2  # of a run under way; a recorded one has none

    def __post_init__(self) -> None:
        ok = self.keep_weights_mb >= 0
        require(ok, "execution.keep_weights_mb", self.keep_weights_mb, "at least 0")
        minutes = self.checkpoint_minutes
        ok = minutes is None or 0 <= minutes < math.inf
        require(ok, "execution.checkpoint_minutes", minutes, "at least 0, or null for none")
        ok = self.checkpoints_kept > 0
        require(ok, "execution.checkpoints_kept", self.checkpoints_kept, "at least 1")
        ok = 0 < self.threads <= MOST_THREADS
        require(ok, "execution.threads", self.threads, f"at least 1 and at most {MOST_THREADS}")
        rows = self.micro_batch_size
        ok = rows is None or rows == "auto" or (isinstance(rows, int) and rows > 0)
        require(ok, "execution.micro_batch_size", rows, "at least 1, auto or null")
        ok = self.micro_batch_tokens is None or self.micro_batch_tokens > 0
        require(ok, "execution.micro_batch_tokens", self.micro_batch_tokens, "at least 1, or null")
        ok = 0 < self.lanes <= MOST_LANES
        require(ok, "execution.lanes", self.lanes, f"at least 1 and at most {MOST_LANES}")
        ok = 0 < self.devices <= MOST_LANES
        require(ok, "execution.devices", self.devices, f"at least 1 and at most {MOST_LANES}")
        ok = self.sharding == "none" or self.devices > 1
        require(ok, "execution.sharding", self.sharding, "none unless execution.devices is above 1")
        ok = self.eval_batch_size > 0
        require(ok, "execution.eval_batch_size", self.eval_batch_size, "at least 1")
        ok = self.eval_batch_tokens > 0
        require(ok, "execution.eval_batch_tokens", self.eval_batch_tokens, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination of levels: all that a run needs to know."""

    masking: Masking
    plw: float
    completion_weight: float = 1.0
    loss: Loss
    adapter: Adapter
    rank: int
    init: Init = field(default_factory=Init)
    optimizer: Optimizer = field(default_factory=Optimizer)
    placement: Placement = field(default_factory=Placement)
    regulariser: Regulariser = field(default_factory=Regulariser)
    base_precision: Literal["fp32", "bf16", "int8", "nf4", "auto"] = "fp32"
    embeddings: Literal["frozen", "trained"] = "frozen"
    dataset: Dataset
    model: Model
    train: Train
    evaluate: Evaluate
    execution: Execution
    seed: int = 0
    sham: str = "a"  # the A/A factor: any label but "a" changes the random draws, nothing else

    def __post_init__(self) -> None:
        require(0 <= self.plw <= 1, "plw", self.plw, "in [0, 1]")
        ok = 0 <= self.completion_weight <= 1
        require(ok, "completion_weight", self.completion_weight, "in [0, 1]")
        require(self.rank >= 1, "rank", self.rank, "at least 1")
        require(0 <= self.seed < 2**31, "seed", self.seed, "in [0, 2147483648)")

    @property
    def is_base(self) -> bool:
        """Whether this is the untouched base model, which is scored and not trained."""
        return self.adapter.kind == "none"
