"""Arms on rates with known optima: what the comparison at their own rates is held against.

The loss of an arm is l0 + h (x - m)^2 and its score s0 - d (x - m - o)^2 at x = log2(rate): the
best rate is 2^m by the loss, and the score at it is s0 - d o^2. Where training becomes unstable
the score falls off a cliff. A seed moves loss and score of all arms (block), of one arm at all
rates (arm), and every run has noise of its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit

from analysis.engine.linalg import Array
from analysis.questions.own_rate.curves import RateCurve


@dataclass(frozen=True)
class Arm:
    """An arm's truth; rates are in steps of log2 from the middle of those tried."""

    best: float = 0.1  # where its loss is lowest
    score: float = 30.0  # at the score's own best
    offset: float = 0.3  # of the score's best rate from the loss's
    steady: float = 1.0  # factor on its noise
    cliff: float = math.inf  # where training becomes unstable, beyond the rate of its lowest loss

    def at(self, x: Array) -> Array:
        """The score at x without noise."""
        fallen = DEEP * expit((x - self.best - self.cliff) / EDGE)
        return np.asarray(self.score - FALL * (x - self.best - self.offset) ** 2 - fallen)

    @property
    def truth(self) -> float:
        """The score at the rate of the lowest loss."""
        return float(self.at(np.array(self.best)))


STEP, SEEDS = 0.5, 2
DEEP, EDGE = 30.0, 0.15  # of a cliff: points, and log2 of the rate
BEND, FALL = 0.10, 4.0  # of the loss in nats, of the score in points, per squared log2
BLOCK, OWN, RUN = 1.0, 0.8, 1.0  # standard deviations in points
NATS = 0.01  # nats to a point of noise; a part of it is common to loss and score


def draw(
    arms: Mapping[str, Arm],
    rng: np.random.Generator,
    *,
    places: int = 3,
    seeds: int = SEEDS,
    rates: int = 5,
    own_seeds: bool = True,
    nats: float = NATS,
) -> list[RateCurve]:
    """Return the curves of a study; seeds are each place's own, or the same at all places."""
    x_K = STEP * (np.arange(rates) - rates // 2)
    found, blocks, lasting = [], {}, {}
    for place in range(places):
        names = [str(s + seeds * place * own_seeds) for s in range(seeds)]
        for name, arm in arms.items():
            noise_SK = np.empty((2, seeds, rates))
            for i, s in enumerate(names):
                block = blocks.setdefault(s, rng.normal(0, BLOCK, 2))
                own = lasting.setdefault((s, name), rng.normal(0, OWN, 2))
                shared, apart = rng.normal(0, RUN, (2, 2, rates))
                noise = own[:, None] + 0.8 * shared[:1] + 0.6 * apart
                noise_SK[:, i] = block[:, None] + arm.steady * noise
            loss_SK = 0.7 + BEND * (x_K - arm.best) ** 2 - nats * noise_SK[0]
            score_SK = arm.at(x_K) + noise_SK[1]
            runs = tuple(tuple(f"{name} {place} {s} {k}" for k in range(rates)) for s in names)
            found.append(RateCurve(name, f"batch {place}", 0.01 * 2**x_K, tuple(names),
                                   loss_SK, score_SK, runs))  # fmt: skip
    return found


TASKS = {  # type, metric, side
    "micro_arithmetic": ("mc", "acc", "target"),
    "micro_translate": ("short", "chrf", "target"),
    "micro_facts": ("mc", "acc", "source"),
}


def results(curves: list[RateCurve]) -> pd.DataFrame:
    """Return the results table of a study with these runs, the untouched base beside them."""
    rows = []
    common = {
        "study": "fake", "masking": "instruction", "plw": 0.0, "effective_plw": 0.0, "wp": 0.0,
        "rank": 4, "dataset": "micro", "model": "micro_0", "sham": "a", "shuffle_prompts": False,
        "alias": False, "status": "done", "higher_is_better": True, "train": "micro",
    }  # fmt: skip
    for curve in curves:
        adapter, _, init = curve.arm.partition("+")
        for s, seed in enumerate(curve.seeds):
            for k, rate in enumerate(curve.rate_K):
                run = common | {
                    "adapter": adapter, "init": init or "default", "lr": float(rate),
                    "seed": int(seed), "train.batch_size": 8 * 2 ** int(curve.place[-1]),
                    "train_key": curve.run_SK[s][k],
                }  # fmt: skip
                score, loss = curve.score_SK[s, k], curve.loss_SK[s, k]
                held = {"task": "heldout_validation", "task_type": "heldout", "side": "target",
                        "metric": "loss_completion", "higher_is_better": False}  # fmt: skip
                rows += [run | own for own in _scores(score)] + [run | held | {"value": loss}]
    base = common | {"adapter": "none", "seed": 0, "train_key": "base", "dataset": "none"}
    return pd.DataFrame(rows + [base | own for own in _scores(10.0)])


def _scores(points: float) -> list[dict[str, object]]:
    return [
        {"task": task, "task_type": kind, "metric": metric, "side": side, "value": points / 100}
        for task, (kind, metric, side) in TASKS.items()
    ]


def dose_results(curves: list[RateCurve]) -> pd.DataFrame:
    """Return the same of full fine-tuning with the arms "masked" and "unmasked" as doses.

    The masked runs have a further name under another normaliser, which does nothing to them; the
    unmasked ones ran under it as well, as the arm "unmasked per completion".
    """
    raw = results(curves)
    trained = raw["train_key"] != "base"
    masked, other = raw["adapter"] == "masked", raw["adapter"] == "unmasked per completion"
    plw = (trained & ~masked).astype(float)
    raw = raw.assign(
        masking=np.where(masked, "instruction", "none"), plw=plw, effective_plw=plw, wp=plw,
        normaliser=np.where(other, "completion", "weight"),
        adapter=raw["adapter"].where(~trained, "full"),
    )  # fmt: skip
    twice = raw[masked].assign(normaliser="completion", alias=True)
    return pd.concat([raw, twice] if other.any() else [raw], ignore_index=True)
