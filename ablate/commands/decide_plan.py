"""`ablate decide --dry-run`: what a decision would be, cost and find; writes and trains nothing."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ablate.commands.decide_ledger import Campaign
from ablate.commands.decide_loop import Referee
from ablate.commands.decide_pair import PairedRuns, scores, unit_of
from ablate.commands.decide_settings import known
from ablate.commands.decide_view import FOUND, rule_of
from ablate.experiment.cost import cost

if TYPE_CHECKING:
    from analysis.planning.paired import Rule

ENOUGH = ("max_seeds", "power", "seeds")  # with which so many are found


def plan(referee: Referee) -> dict[str, Any]:
    """Return what a decision would be, or how it was answered, JSON-ready.

    Raises:
        UserError: as `Referee.decide` does.
    """
    asked = referee.pair(referee.seeds(None))
    if asked.same:
        return {"answered": True, "same_run": True, "answer": referee.same(asked)}
    campaign = referee.ledger.read()
    entry = known(campaign, asked.question, referee.settings)
    if entry is not None and entry.closed is not None:
        answer = referee.told(campaign, entry, asked_before=True)
        return {"answered": True, "same_run": False, "answer": answer}
    if entry is None:
        rule, number = referee.rule(campaign)[0], max(campaign.entries, default=0) + 1
        fresh_from = referee.fresh_from(campaign)
    else:
        rule, number, fresh_from = rule_of(entry), entry.number, entry.fresh_from
    both = referee.pair(referee.seeds(fresh_from))
    return {
        "answered": False,
        "same_run": False,
        "decision": number,
        "begun": entry is not None,
        "score": referee.request.score,
        "unit": unit_of(referee.request.score),
        "rule": asdict(rule) | {"looks": list(rule.looks), "sha256": rule.sha256},
        "found_at": _found_at(rule),
        "noise": _noise(referee, campaign, both, rule),
        "out": str(referee.store.out),
        **_to_do(referee, both, rule),
    }


def _to_do(referee: Referee, both: PairedRuns, rule: "Rule") -> dict[str, Any]:
    """Return what is recorded and what is left to train, by the first look and at most."""
    seeds, store = sorted(both.base.by_seed)[: rule.most], referee.store
    lacking = [{s for s in seeds if not both.scored(store, side, s)} for side in both.sides]
    first = set(seeds[: rule.looks[0]])
    todo = {
        side.key(s): side.by_seed[s]
        for side, own in zip(both.sides, lacking, strict=True)
        for s in sorted(own)
    }
    estimate = cost(todo.values(), store)
    return {
        "recorded": {
            name: len(seeds) - len(own)
            for name, own in zip(("base", "candidate"), lacking, strict=True)
        },
        "first_look": sum(len(own & first) for own in lacking),
        "most": len(todo),
        "core_seconds": round(estimate.seconds, 1),
        "basis": estimate.basis,
    }


def _noise(
    referee: Referee, campaign: Campaign, both: PairedRuns, rule: "Rule"
) -> dict[str, Any] | None:
    """Return how far differences scatter, by what is recorded, and what that means for the rule.

    It is for planning alone: the rule estimates the noise anew and errs no more if this is wrong.
    """
    import numpy as np

    from analysis.errors import AnalysisError
    from analysis.inference.moderated import moderated
    from analysis.planning.paired import enough, foreseen

    own = [
        np.asarray(entry.differences)
        for entry in campaign.entries.values()
        if len(entry.differences) > 1 and entry.about["score"] == referee.request.score
    ]
    source = f"{len(own)} decisions of this campaign"
    if not own:
        found = scores(both, referee.store, both.base.by_seed).by_run
        runs = np.array([value for (side, _), value in found.items() if side == "base"])
        if len(runs) < 2:
            return None
        own, source = [runs * np.sqrt(2)], f"{len(runs)} runs of the base, both sides as noisy"
    variance_G, df_G = [d.var(ddof=1) for d in own], [len(d) - 1.0 for d in own]
    try:
        sd = float(np.sqrt(moderated(np.array(variance_G), np.array(df_G)).common))
    except AnalysisError:  # runs that do not differ at all
        return None
    power, seeds = foreseen(rule, rule.margin, sd)
    longer = None if power >= FOUND else enough(rule, sd, found=FOUND)
    return {
        "sd": sd, "source": source, "power": power, "seeds": seeds,
        "seeds_of_none": foreseen(rule, 0.0, sd)[1],
        "enough": None if longer is None else dict(zip(ENOUGH, longer, strict=True)),
    }  # fmt: skip


def _found_at(rule: "Rule") -> float:
    """Return the effect, in standard deviations of a difference, that is found in 80 %.

    The margin is taken to be of that size too, so that the rule seldom rejects it.
    """
    from dataclasses import replace

    from analysis.planning.paired import foreseen

    def share(effect: float) -> float:
        return foreseen(replace(rule, margin=effect), effect, 1.0)[0]

    return _lowest(lambda effect: share(effect) >= FOUND, 0.05, 500.0)


def _lowest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return where, between two numbers, something begins to hold, to a per cent."""
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
