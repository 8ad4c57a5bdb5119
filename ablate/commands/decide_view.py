"""What is told of a decision: as one object for programs, and in lines for people."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ablate.commands.decide_ledger import Campaign, Entry
from ablate.commands.decide_pair import unit_of
from ablate.errors import UserError
from ablate.terminal import duration

if TYPE_CHECKING:
    from analysis.planning.paired import Rule

POPULATION = "new seeds of training, scored on these same items"
FOUND = 0.8  # of effects of a size: what is told of a rule
STATUS = {"accept": 0, "undecided": 1, "reject": 4}  # 2 and 3 are those of every verb
MEANING = {
    "accept": "the candidate is better than its base",
    "reject": "the candidate is not better by the margin",
    "undecided": "neither is shown",
}


def rule_of(entry: Entry) -> "Rule":
    """Return the rule of a decision.

    Raises:
        UserError: it is not the one that the decision was opened with.
    """
    from analysis.planning.paired import Rule

    rule = Rule(**entry.rule | {"looks": tuple(entry.rule["looks"])})
    if rule.sha256 != entry.sha256:
        raise UserError(
            f"decision {entry.number}: its rule in decisions.jsonl is not the one it was opened "
            "with; put a copy of the file in its place, or begin another campaign with another out="
        )
    return rule


def told(campaign: Campaign, entry: Entry, *, why: str = "") -> dict[str, Any]:
    """Return what the ledger says of a decision, with its estimate and bounds, JSON-ready."""
    import numpy as np

    from analysis.planning.paired import bounds

    rule = rule_of(entry)
    estimate = low = high = None
    if looked := [k for k, n in enumerate(rule.looks) if n <= len(entry.differences)]:
        found = bounds(rule, np.asarray(entry.differences), resolution=entry.resolution)
        k = looked[-1]
        estimate, low, high = (float(x[k]) for x in (found.estimate_L, found.low_L, found.high_L))
    seeds = entry.seeds[: len(entry.differences)]
    before = entry.about["recorded_before"]["candidate"]
    spends = campaign.settings or {}
    return {
        "verdict": entry.verdict or "undecided",
        "final": entry.closed is not None,
        "why": why,
        "decision": entry.number,
        "base": entry.about["base"],
        "candidate": entry.about["candidate"],
        "common": entry.about["common"],
        "score": entry.about["score"],
        "unit": unit_of(entry.about["score"]),
        "population": POPULATION,
        "estimate": estimate,
        "low": low,
        "high": high,
        "seeds": seeds,
        "differences": entry.differences,
        "failed_seeds": entry.failed,
        "recorded_before": [s for s in seeds if s in before],
        "fresh": entry.fresh_from is not None,
        "rule": {**entry.rule, "looks": list(rule.looks), "sha256": entry.sha256},
        "campaign": {
            **spends, "opened": len(campaign.entries), "seeds": campaign.seeds,
            "accepted": sum(e.verdict == "accept" for e in campaign.entries.values()),
        },
    }  # fmt: skip


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield what is told of a decision, a paragraph each; the first begins with the verdict."""
    if found["same_run"]:
        yield f"{found['verdict']}: {found['why']}"
        return
    rule, unit = found["rule"], found["unit"]
    yield f"{found['verdict']}: {found['why'] or MEANING[found['verdict']]}"
    if found["estimate"] is not None:
        yield (
            f"  candidate less base: {found['estimate']:.3g} {unit} over {len(found['seeds'])} "
            f"seeds; above {found['low']:.3g} (error {rule['alpha']:.2g}) and below "
            f"{found['high']:.3g} (error {rule['miss']:.2g}), at all looks together; margin "
            f"{rule['margin']:g}"
        )
        yield f"  about {found['population']}, score: {found['score']}"
    if found["failed_seeds"]:
        yield f"  seeds that failed and do not count: {', '.join(map(str, found['failed_seeds']))}"
    if found["recorded_before"]:
        yield (
            f"  {len(found['recorded_before'])} of the candidate's runs were recorded before: the "
            "error rate holds if it was not chosen for their scores; --fresh takes new seeds"
        )
    campaign, asked = found["campaign"], "asked before, nothing spent; " * found["asked_before"]
    yield (
        f"  {asked}decision {found['decision']} of a campaign at {campaign['alpha']:g}: "
        f"{campaign['accepted']} of {campaign['opened']} accepted, {campaign['seeds']} seeds; "
        f"{found['runs_trained']} runs trained now; {found['out']}/decisions.jsonl"
    )


def plan_lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield what is told of a decision that is only planned."""
    if found.get("same_run") or found["answered"]:
        yield from lines(found["answer"])
        return
    rule = found["rule"]
    yield (
        f"decision {found['decision']}: looks at {_range(rule['looks'])} seeds, accepts with an "
        f"error of {rule['alpha']:.2g} and rejects with one of {rule['miss']:.2g} at an effect of "
        f"{rule['margin']:g} {found['unit']}"
    )
    yield (
        f"  recorded: {found['recorded']['base']} runs of the base, "
        f"{found['recorded']['candidate']} of the candidate; to train: {found['first_look']} runs "
        f"for the first look, at most {found['most']}, {duration(found['core_seconds'])} of one "
        f"worker from {found['basis']}"
    )
    yield (
        f"  at most {rule['looks'][-1]} seeds find {FOUND:.0%} of effects of "
        f"{found['found_at']:.2g} standard deviations of a difference"
    )
    if noise := found["noise"]:
        yield (
            f"  that standard deviation is about {noise['sd']:.3g} {found['unit']} ("
            f"{noise['source']}): an effect of the margin is found in {noise['power']:.0%} with "
            f"{noise['seeds']:.1f} seeds, no effect takes {noise['seeds_of_none']:.1f}"
        )
        if noise["power"] < FOUND and not found["begun"]:
            yield f"  for {FOUND:.0%}: {_longer(noise, rule)}"


def _longer(noise: dict[str, Any], rule: dict[str, Any]) -> str:
    if noise["enough"] is None:
        return "more than 100 seeds; a larger --margin, or a score with less noise (more items)"
    most, looks = noise["enough"]["max_seeds"], rule["looks"]
    every = len(looks) > 1 and looks[-1] - looks[-2] == 1
    option = f"--max-seeds {most}" if every else f"--looks that go on to {most}"
    return f"{option}, {noise['enough']['seeds']:.1f} of them used by an effect of the margin"


def _range(looks: list[int]) -> str:
    steps = {b - a for a, b in itertools.pairwise(looks)}
    if len(looks) > 3 and steps == {1}:
        return f"{looks[0]}, {looks[1]}, ..., {looks[-1]}"
    return ", ".join(map(str, looks))
