"""The history of a training run: one entry per optimizer step, and the totals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ablate.errors import UserError
from ablate.roles import NAMES, Role

# The completion's share of the gradient costs a second softmax, so it is measured every 10th step.
SHARE_EVERY = 10
# Relative difference of a step's loss up to which two courses are of one run. Two micro-batch sizes
# gave 4e-5 in fp32 and 0.025 in bf16 after 120 steps at a high rate.
SAME_COURSE = {"fp32": 1e-3, "bf16": 0.05}

Entry = dict[str, float | int | bool | None]  # one step of the history; None: not measured


class Diverged(Exception):
    """A loss or a gradient norm during training is not a finite number."""

    kind = "diverged"  # of failure

    def __init__(self, step: int, what: str, value: float) -> None:
        super().__init__(f"step {step}: {what} is {value}")
        self.step, self.what, self.value = step, what, value


@dataclass(slots=True)
class Result:
    """The history and the totals of a training run.

    Each entry of `history` is an optimizer step: step (from 1), stage, lr, loss (the objective,
    divided by W), loss_<role> (mean over that role's targets with a weight; None if there are
    none), grad_norm (before clipping), clipped, completion_grad_share, supervised_weight, tokens
    and examples.

    completion_grad_share is the completion's part of sum_t u_t |d loss_t / d logits_t| over the
    whole step, measured every `SHARE_EVERY` steps.
    """

    history: list[Entry] = field(default_factory=list)
    tokens_seen: int = 0
    supervised_weight_seen: float = 0.0
    examples_seen: int = 0
    train_seconds: float = 0.0
    lanes: int = 1  # cells that trained side by side; the time is divided among them
    peak_mb: float = 0.0  # accelerator memory, or the process's resident memory on a CPU
    micro_batch_tokens: int = 0  # of the largest forward pass, padding included
    out_of_memory: int = 0  # how often a step was taken again in smaller micro-batches
    resumed: list[int] = field(default_factory=list)  # after which steps a checkpoint was read

    def add(self, entry: Entry, memory_mb: float) -> None:
        """Append a step to the history and to the totals."""
        self.peak_mb = max(self.peak_mb, memory_mb)
        self.history.append(entry)
        self.tokens_seen += int(entry["tokens"] or 0)
        self.supervised_weight_seen += float(entry["supervised_weight"] or 0)
        self.examples_seen += int(entry["examples"] or 0)


def shares(step: int) -> bool:
    """Return whether a step, counted from 0 over all stages, measures the completion's share."""
    return step % SHARE_EVERY == 0


def step_entry(
    step: int,
    stage: int,
    *,
    lr: float,
    sums: Sequence[float],
    counts: Sequence[float],
    norm: float,
    clip: float | None,
) -> Entry:
    """Return the entry of an optimizer step.

    Args:
        step: its number, from 1.
        stage: the number of its training pass, from 0.
        lr: the learning rate.
        sums: `TokenLoss.sums_S` of the whole step.
        counts: `Weighed.sums_C` of the whole step.
        norm: of the gradient, before clipping.
        clip: the largest norm that is not clipped.

    Raises:
        Diverged: the loss or the norm is not finite.
    """
    entry: Entry = {
        "step": step,
        "stage": stage,
        "lr": lr,
        **_loss_columns(sums, counts[0] or 1.0),
        "grad_norm": norm,
        "clipped": clip is not None and norm > clip,
        "supervised_weight": counts[1],
        "tokens": int(counts[2]),
        "examples": int(counts[3]),
    }
    for what in ("loss", "grad_norm"):
        value = float(entry[what] or 0.0)
        if not math.isfinite(value):
            raise Diverged(step, what, value)
    return entry


def _loss_columns(sums: Sequence[float], divisor: float) -> Entry:
    by_role, count, grad_norm = (sums[1 + i * len(Role) :][: len(Role)] for i in range(3))
    entry: Entry = {"loss": sums[0] / divisor}
    for role in Role:
        if role != Role.PAD:
            entry[f"loss_{NAMES[role]}"] = by_role[role] / count[role] if count[role] else None
    share = grad_norm[Role.COMPLETION] / sum(grad_norm) if sum(grad_norm) > 0 else None
    return entry | {"completion_grad_share": share}


def check_same(retrained: Sequence[Entry], recorded: Sequence[Entry], precision: str) -> None:
    """Check that a run that was trained again took the course that is recorded of it.

    Args:
        retrained: its history now.
        recorded: its history then.
        precision: that it was trained in, `train.precision`.

    Raises:
        UserError: a loss differs by more than rounding.
    """
    if len(retrained) != len(recorded):
        raise UserError(_other_model(f"{len(retrained)} steps", f"{len(recorded)}"))
    for now, then in zip(retrained, recorded, strict=True):
        one, other = float(now["loss"] or 0), float(then["loss"] or 0)
        if abs(one - other) > SAME_COURSE[precision] * abs(other):
            at = f"the loss {one:.6g} at step {now['step']}"
            raise UserError(_other_model(at, f"{other:.6g}"))


def _other_model(now: str, then: str) -> str:
    return (
        f"its weights were not kept, and training again gives {now} where {then} is recorded: "
        "another model, whose scores do not belong into this record; score it where it was "
        "trained, or remove the record and train anew"
    )
