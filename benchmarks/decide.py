"""False accepts, power and seeds of the rule behind `ablate decide`, over simulated campaigns.

    python benchmarks/decide.py [--campaigns 1000]

Writes benchmarks/decide.csv, which docs/decide.md quotes. A campaign tries edits one after another;
what is accepted is the next base. One effect, the margin, is 1; `sd` is the standard deviation of a
difference of paired seeds where both sides have one of sd / sqrt(2). Edits are

    null     of no effect, 100 of them
    mixed    9 in 10 of no effect, 1 in 20 better by the margin, 1 in 20 worse by it
    true     better by the margin, one, the first of its campaign

and the noise of scores is

    normal       independent, of one variance
    shared       normal, and the base keeps its runs, so that decisions share their noise
    correlated   normal, seeds shared by both sides with a correlation of 0.6
    heavy        Student's t with 3 degrees of freedom
    skewed       a gamma variate of shape 2, the candidate's variance twice the base's
    uneven       normal, the standard deviation of a seed log-normal with a spread of 0.7
    steps        normal, rounded to half a margin, as accuracies over few items are

Rules: `decide`, as the command has it; `one_seed` keeps whatever is better on one seed;
`three_seeds` what has p < 0.05, one-sided, in a t test on three.

Columns: `any_false` the share of campaigns with at least one false accept and `error` its
Monte-Carlo error; `found` the share of true effects that were accepted; `seeds` of a decision on
average, of all edits; `fixed` the seeds that a t test at the same error needs, without looking, for
`found`; `most` the most seeds, 20 unless it is said.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.engine.linalg import Array
from analysis.planning.campaign import rate
from analysis.planning.paired import Decisions, Rule, decide, enough, fixed_seeds

HERE = Path(__file__).parent
NOISES = ("normal", "shared", "correlated", "heavy", "skewed", "uneven", "steps")
EDITS = ("null", "mixed", "true")
LOOKS, MISS, ALPHA = tuple(range(3, 21)), 0.1, 0.05
EXPECTED = 100  # decisions of a campaign
ROOT = 20260412


@dataclass(frozen=True, slots=True)
class Counted:
    """What came of simulated campaigns."""

    any_false: float
    error: float
    found: float
    seeds: float


def effects(edits: str, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Return the true effect of every edit on the score, (campaigns, edits)."""
    if edits == "mixed":
        return rng.choice([0.0, 1.0, -1.0], shape, p=[0.9, 0.05, 0.05])
    return np.full(shape, 1.0 if edits == "true" else 0.0)


def noise(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Array, Array]:
    """Return the noise of base and candidate by seed, each of standard deviation 1 / sqrt(2)."""
    if kind == "skewed":
        base, other = (rng.gamma(2.0, size=shape) / np.sqrt(2) - np.sqrt(2) for _ in "12")
        return base / np.sqrt(3), other * np.sqrt(2 / 3)  # variances of 1/3 and 2/3
    if kind == "heavy":
        base, other = (rng.standard_t(3, size=shape) / np.sqrt(3) for _ in "12")
    else:
        base, other = rng.standard_normal(shape), rng.standard_normal(shape)
    if kind == "correlated":
        other = 0.6 * base + 0.8 * other
    if kind == "uneven":
        spread = np.exp(0.7 * rng.standard_normal(shape) - 0.7**2)
        base, other = base * spread, other * spread
    return base / np.sqrt(2), other / np.sqrt(2)


def campaigns(
    edits: str,
    kind: str,
    sd: float,
    *,
    count: int,
    length: int = 100,
    rule: str = "decide",
    looks: tuple[int, ...] = LOOKS,
) -> Counted:
    """Return what came of `count` simulated campaigns of `length` edits under one rule.

    All of a campaign are simulated together, an edit at a time.
    """
    rng = np.random.default_rng([ROOT, EDITS.index(edits), NOISES.index(kind), count])
    true_CE = effects(edits, (count, length), rng)
    level_C, base_CN = np.zeros(count), None  # of the base that counts now, and its own noise
    carried_C = np.zeros(count)  # error rates that accepted decisions pass on
    false_C = np.zeros(count, dtype=bool)
    found, seeds = [], []
    for edit in range(length):
        own_CN, other_CN = noise(kind, (count, looks[-1]), rng)
        base_CN = own_CN if base_CN is None or kind != "shared" else base_CN
        effect_C = true_CE[:, edit]
        scores = [level_C[:, None] + sd * base_CN, (level_C + effect_C)[:, None] + sd * other_CN]
        step = 0.5 if kind == "steps" else 0.0
        if step:
            scores = [step * np.round(score / step) for score in scores]
        alpha_C = rate(ALPHA, edit + 1, EXPECTED) + carried_C
        accepted, used = decided(rule, scores[1] - scores[0], alpha_C, step, looks)
        carried_C = np.where(accepted, alpha_C, 0.0)
        false_C |= accepted & (effect_C <= 0)
        level_C = level_C + np.where(accepted, effect_C, 0.0)
        base_CN = np.where(accepted[:, None], other_CN, base_CN)
        found.append(accepted[effect_C > 0])
        seeds.append(used)
    share = float(false_C.mean())
    hits = np.concatenate(found)
    return Counted(
        share, float(np.sqrt(share * (1 - share) / count)),
        float(hits.mean()) if len(hits) else float("nan"), float(np.mean(seeds)),
    )  # fmt: skip


def decided(
    rule: str, d_CN: Array, alpha_C: Array, step: float, looks: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return which edits a rule accepts, one in each campaign, and the seeds that it used."""
    if rule == "one_seed":
        return d_CN[:, 0] > 0, np.ones(len(d_CN))
    if rule == "three_seeds":
        first = d_CN[:, :3]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = first.mean(1) / (first.std(1, ddof=1) / np.sqrt(3))
        return t > student.isf(0.05, 2), np.full(len(d_CN), 3)
    accepted, seeds = np.zeros(len(d_CN), dtype=bool), np.zeros(len(d_CN))
    for alpha in np.unique(alpha_C):  # few: of a decision's own, and with what was passed on
        here = alpha_C == alpha
        fixed = Rule(1.0, float(alpha), MISS, looks)
        found: Decisions = decide(fixed, d_CN[here], resolution=step)
        accepted[here], seeds[here] = found.accepted, found.seeds
    return accepted, seeds


def rows(count: int) -> Iterator[dict[str, object]]:
    """Yield the lines of the table."""
    for sd in (6.0, 1.0, 0.8, 0.5, 0.33):
        yield from _both(sd, LOOKS, count)
    for sd in (1.0, 1.5, 2.0):  # with the seeds that find 80 %
        enough_seeds = enough(Rule(1.0, rate(ALPHA, 1, EXPECTED), MISS, LOOKS), sd)
        assert enough_seeds is not None
        yield from _both(sd, tuple(range(LOOKS[0], enough_seeds[0] + 1)), count)
    for kind in NOISES[1:]:
        for edits, length in (("null", 100), ("true", 1), ("mixed", 100)):
            found = campaigns(edits, kind, 0.8, count=count, length=length)
            yield _row(edits, kind, "decide", 0.8, found)
    for rule in ("one_seed", "three_seeds"):
        for edits, length in (("null", 100), ("true", 1)):
            found = campaigns(edits, "normal", 0.8, count=count, length=length, rule=rule)
            yield _row(edits, "normal", rule, 0.8, found)


def _both(sd: float, looks: tuple[int, ...], count: int) -> Iterator[dict[str, object]]:
    for edits, length in (("null", 100), ("true", 1)):
        own = count if edits == "null" else 4 * count
        found = campaigns(edits, "normal", sd, count=own, length=length, looks=looks)
        alone = fixed_seeds(rate(ALPHA, 1, EXPECTED), 1 / sd, found.found)
        yield _row(edits, "normal", "decide", sd, found) | {"fixed": alone, "most": looks[-1]}


def _row(edits: str, kind: str, rule: str, sd: float, found: Counted) -> dict[str, object]:
    numbers = {name: round(getattr(found, name), 4) for name in Counted.__slots__}
    return {"edits": edits, "noise": kind, "rule": rule, "sd": sd} | numbers


def main() -> None:
    """Write the table and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--campaigns", type=int, default=1000)
    table = pd.DataFrame(rows(parser.parse_args().campaigns))
    table.to_csv(HERE / "decide.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
