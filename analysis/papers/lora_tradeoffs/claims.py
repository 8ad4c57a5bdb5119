"""What the paper claims of LoRA and full tuning, each held against the data.

Biderman et al., arXiv 2405.09673; as published and refitted in docs/published.md. Every arm stands
at its own learning rate. Verdicts are those of `papers.verdicts`, from seeds (`contrasts`); those
on "alike" and "about ten times" are tests of equivalence. Intervals are 95 % each and not adjusted
for the number of lines.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.inference.estimates import Estimate
from analysis.papers import verdicts
from analysis.papers.lora_tradeoffs import contrasts
from analysis.papers.lora_tradeoffs.contrasts import KEPT, LEARNT
from analysis.papers.lora_tradeoffs.runs import (
    AS_GOOD,
    INSTRUCTIONS,
    NATS,
    TEXT,
    Choose,
    Parts,
    Tradeoff,
    by_parabola,
    kindest,
    lora,
)
from analysis.papers.lora_tradeoffs.spectrum import MATRIX, spectrum
from analysis.table.factors import FULL

MARGIN_NATS = AS_GOOD  # of equivalence
# Other ways to choose a rate, under which every verdict is given again.
OTHER_RATES: Mapping[str, Choose] = {"near_best": by_parabola, "kindest": kindest}
LOG_TEN, LOG_FACTOR = math.log2(10), 1.0  # "about ten times": within a factor of two of it
CLAIMS: Mapping[str, str] = {
    "learns": "Full tuning learns more than LoRA, at equal budgets",
    "embeddings": "(ours) Full tuning learns more where both train the embeddings, or neither",
    "grows": "In CPT the gap grows with the budget",
    "grows_less": "In IFT the gap grows less than in CPT",
    "forgets": "LoRA forgets less than full tuning, at equal budgets",
    "matched": "LoRA forgets less than full tuning, at matched learning",
    "rank_learns": "A higher rank learns more",
    "rank_forgets": "A higher rank forgets more",
    "ift": "IFT forgets more than CPT",
    "code": "Code forgets more than mathematics",
    "alike_learns": "Full tuning under weight decay or attention dropout learns like full tuning",
    "alike_forgets": "Full tuning under weight decay or attention dropout forgets like full tuning",
    "less_than_held": "LoRA forgets less than full tuning under weight decay or dropout",
    "placement": "LoRA on attention alone learns less than elsewhere",
    "ten_times": "LoRA's best rate is about ten times that of full tuning",
    "narrower": "LoRA's range of good rates is narrower than that of full tuning",
    "optimizer": "LionW learns more than AdamW",
    "alpha": "An alpha of twice the rank learns more than a smaller one",
    "spectrum": "The rank of full tuning's change grows with the tokens of CPT",
}
NEVER = "the arms never learnt as much"
# Claims whose numbers are of one kind: their noise is moderated together.
SAME_NOISE = {"embeddings": "learns", "code": "ift", "optimizer": "placement", "alpha": "placement"}


@dataclass(frozen=True, slots=True)
class Line:
    """One claim in one place."""

    claim: str
    where: str
    measure: str
    parts: Parts | None  # each seed's part; None where it was not run
    sign: int = 1
    margin: float | None = None
    alike: float | None = None  # the claim is of equivalence to this value, within the margin
    log2: bool = False  # parts are logarithms, and factors are shown
    note: str = ""  # what the comparison holds

    def row(self, effect: Estimate | None) -> dict[str, object]:
        """Return it as one row of a table."""
        said = self.verdict(effect)
        seeds = 0 if self.parts is None else len(self.parts)
        head = {"claim": CLAIMS[self.claim], "where": self.where, "measure": self.measure}
        row = verdicts.row(head | {"seeds": seeds}, effect, said)
        if self.log2:
            numbers = ("estimate", "low", "high", "mde")
            row |= {name: float(2.0 ** float(str(row[name]))) for name in numbers}
        return row | {"note": self.note}

    def verdict(self, effect: Estimate | None) -> str:
        """Return the verdict on the claim here."""
        if self.alike is None or self.margin is None:
            return verdicts.verdict(effect, self.sign, self.margin)
        away = effect and replace(effect, estimate=effect.estimate - self.alike)
        return verdicts.same(away, self.margin)


def tradeoff_claims(found: Tradeoff, frame: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Return claim, where, measure, seeds, estimate, low, high, mde, verdict, note and two more.

    Args:
        found: the runs.
        frame: the prepared frame they come from, for the rank of the change.
        margin: of equivalence in points.

    Returns:
        A row per claim and place; the last two are the verdict by other rates in place of the best
        one tried. near_best: where the parabola through it and its neighbours is lowest. kindest:
        that which keeps most, of those that learn as well.
    """
    rows = judge(_lines(found, frame, margin))
    keys = ["claim", "where", "measure"]
    for name, choose in OTHER_RATES.items():
        other = judge(_lines(found.chosen_by(choose), frame, margin))
        other = other[[*keys, "verdict"]].rename(columns={"verdict": name})
        rows = rows.merge(other.drop_duplicates(keys), on=keys, how="left")
    return rows


def judge(lines: list[Line]) -> pd.DataFrame:
    """Return the lines as a table; the noise of one claim's is moderated together."""
    effects: dict[int, Estimate] = {}
    for kind in dict.fromkeys(SAME_NOISE.get(c, c) for c in CLAIMS):
        own = {
            i: one.parts
            for i, one in enumerate(lines)
            if SAME_NOISE.get(one.claim, one.claim) == kind and one.parts is not None
        }
        places = [_place(lines[i].where) for i in own]
        effects |= dict(zip(own, contrasts.estimates(list(own.values()), places), strict=True))
    rows = []
    for claim in CLAIMS:
        known = [i for i, one in enumerate(lines) if one.claim == claim]
        rows += [lines[i].row(effects.get(i)) for i in known]
        rows += [] if known else [Line(claim, "–", "", None).row(None)]
    return pd.DataFrame(rows)


def _place(where: str) -> str:
    """Return what lines with runs in common have in common: their setting, or arm in it."""
    head, colon, _ = where.partition(":")
    return head if colon else where.partition(",")[0]


def _lines(found: Tradeoff, frame: pd.DataFrame, margin: float) -> list[Line]:
    about = _About(found, margin)
    lines = [line for setting in found.settings for line in _of_setting(about, setting)]
    lines += [*_growing_less(about), *_between_settings(about)]
    lines += [line for setting in found.settings for line in _of_variants(about, setting)]
    return [*lines, *_spectrum(found, frame)]


def _spectrum(found: Tradeoff, frame: pd.DataFrame) -> Iterator[Line]:
    """Yield how the rank of full tuning's change grows over the budgets of CPT."""
    table = spectrum(found, frame)
    table = table[(table["arm"] == FULL) & table["kind"].str.endswith(MATRIX)]
    for setting in [s for s in found.settings if s.endswith(TEXT)]:
        own = table[table["setting"] == setting]
        wide = own.groupby(["seed", "budget"])["share"].mean().unstack().dropna()
        parts = [wide[budget] for budget in wide]
        grown = contrasts.slope(np.log2(wide.columns.to_numpy(float)), parts)
        yield Line("spectrum", setting, "share of the components, a doubling", grown)


@dataclass(frozen=True)
class _About:
    """The runs with the margins of what they are judged by."""

    found: Tradeoff
    points: float

    @property
    def learnt(self) -> float:
        """The margin of what was learnt."""
        return MARGIN_NATS if self.found.unit == NATS else self.points

    def gains(self, claim: str, where: str, parts: Parts | None) -> Line:
        """Return a line on learning."""
        return Line(claim, where, f"learnt, {self.found.unit}", parts, 1, self.learnt)

    def keeps(self, claim: str, where: str, parts: Parts | None, note: str = "") -> Line:
        """Return a line on forgetting: parts are what was kept more, so forgotten less."""
        return Line(claim, where, "forgotten, points", parts, 1, self.points, note=note)


def _of_setting(about: _About, setting: str) -> Iterator[Line]:
    """Yield what compares plain arms within a setting."""
    found = about.found
    full = found.curve(setting, FULL)
    low_ranks = {r: found.curve(setting, lora(r)) for r in found.ranks(setting)}
    for rank, low in low_ranks.items():
        where = f"{setting}, full − r{rank:g}"
        yield about.gains("learns", where, contrasts.gap(full, low, LEARNT))
        yield about.keeps("forgets", where, contrasts.gap(low, full, KEPT))
        if setting.endswith(TEXT):
            doubling = f"learnt, {found.unit} a doubling"
            yield Line("grows", where, doubling, contrasts.growth(full, low, LEARNT))
        same = contrasts.matched(low, full)
        note = f"learnt {same.low:.3g} to {same.high:.3g}" if same else NEVER
        yield about.keeps("matched", where, same.parts if same else None, note)
        for claim, number, measure in (
            ("ten_times", contrasts.log_rate, "LoRA's over full tuning's, times"),
            ("narrower", contrasts.log_width, "full tuning's over LoRA's, times"),
        ):
            sides = (low, full) if claim == "ten_times" else (full, low)
            parts, count, every = contrasts.over_own(*sides, number)
            place, note = f"{setting}, r{rank:g}", f"best rate inside at {count} of {every} budgets"
            line = Line(claim, place, measure, parts, log2=True, note=note)
            of_ten = claim == "ten_times"
            yield replace(line, margin=LOG_FACTOR, alike=LOG_TEN) if of_ten else line
    yield from _over_rank(about, setting)


def _over_rank(about: _About, setting: str) -> Iterator[Line]:
    found = about.found
    ranks = found.ranks(setting)
    curves = [found.curve(setting, lora(r)) for r in ranks]
    budgets = contrasts.shared(*curves)
    if len(ranks) < 2 or not budgets:
        return
    x = np.log2(ranks) / 2
    for claim, outcome in (("rank_learns", LEARNT), ("rank_forgets", KEPT)):
        parts = [contrasts.over_budgets(c, outcome, budgets) for c in curves]
        risen = contrasts.slope(x, parts)
        unit = f"learnt, {found.unit}" if outcome == LEARNT else "forgotten, points"
        forgotten = risen if outcome == LEARNT or risen is None else -risen
        yield Line(claim, setting, f"{unit}, four times the rank", forgotten)


def _growing_less(about: _About) -> Iterator[Line]:
    found = about.found
    for domain in ("code", "math"):
        text, instructions = f"{domain} {TEXT}", f"{domain} {INSTRUCTIONS}"
        for rank in found.ranks(instructions):
            grown = [
                contrasts.growth(found.curve(s, FULL), found.curve(s, lora(rank)), LEARNT)
                for s in (text, instructions)
            ]
            where = f"{domain}, r{rank:g}, CPT − IFT"
            measure = f"learnt, {found.unit} a doubling"
            yield Line("grows_less", where, measure, contrasts.less(*grown))


def _between_settings(about: _About) -> Iterator[Line]:
    """Yield the settings compared in what all of their plain arms forgot, over all budgets."""
    for domain in ("code", "math"):
        yield from _settings(about, "ift", f"{domain} {INSTRUCTIONS}", f"{domain} {TEXT}")
    for regime in (TEXT, INSTRUCTIONS):
        yield from _settings(about, "code", f"code {regime}", f"math {regime}")


def _settings(about: _About, claim: str, more: str, fewer: str) -> Iterator[Line]:
    found = about.found
    arms = [a for a in found.arms(more) if a in found.arms(fewer)]
    if not arms:
        return
    sides = []
    for setting in (fewer, more):
        curves = [found.curve(setting, arm) for arm in arms]
        sides.append(contrasts.mean([contrasts.over_budgets(c, KEPT, list(c)) for c in curves]))
    yield about.keeps(claim, f"{more} − {fewer}", contrasts.less(*sides))


def _with_equal_embeddings(about: _About, setting: str) -> Iterator[Line]:
    """Yield full tuning less LoRA where the embeddings train in both, and in neither.

    The paper trains them in full tuning alone, so that its gap is that of two things at once.
    """
    found = about.found
    for arm in (lora(rank) for rank in found.ranks(setting)):
        pairs = {
            "trained": (FULL, f"{arm}, trained embeddings"),
            "frozen": (f"{FULL}, frozen embeddings", arm),
        }
        for held, names in pairs.items():
            full, low = (found.curve(setting, name) for name in names)
            if contrasts.shared(full, low):
                where = f"{setting}, {held} embeddings, full − {arm.removeprefix('LoRA ')}"
                yield about.gains("embeddings", where, contrasts.gap(full, low, LEARNT))


def _of_variants(about: _About, setting: str) -> Iterator[Line]:
    """Yield what compares arms with something changed with the plain ones."""
    found = about.found
    full = found.curve(setting, FULL)
    for name in found.variants(setting, FULL):
        held = name.removeprefix(f"{FULL}, ")
        curve = found.curve(setting, name)
        if held.startswith(("weight decay", "attention dropout")):
            where = f"{setting}, {held}"
            for claim, outcome in (("alike_learns", LEARNT), ("alike_forgets", KEPT)):
                unit = f"learnt, {found.unit}" if outcome == LEARNT else "kept, points"
                size = about.learnt if outcome == LEARNT else about.points
                parts = contrasts.gap(curve, full, outcome)
                yield Line(claim, where, f"{unit}, less without", parts, 1, size, 0.0)
            for rank in found.ranks(setting):
                low = found.curve(setting, lora(rank))
                yield about.keeps(
                    "less_than_held", f"{where} − r{rank:g}", contrasts.gap(low, curve, KEPT)
                )
    yield from _with_equal_embeddings(about, setting)
    for arm in found.arms(setting):
        plain = found.curve(setting, arm)
        for name in found.variants(setting, arm):
            changed, curve = name.removeprefix(f"{arm}, "), found.curve(setting, name)
            where = f"{setting}, {arm}"
            if "," not in changed and changed.startswith("adamw"):
                parts = contrasts.gap(plain, curve, LEARNT)
                yield about.gains("optimizer", f"{where}: {found.optimizer} − {changed}", parts)
            if "," not in changed and changed.startswith("alpha "):
                parts = contrasts.gap(plain, curve, LEARNT)
                yield about.gains("alpha", f"{where}: twice the rank − {changed}", parts)
        alone = found.curve(setting, f"{arm}, on attention")
        for name in (f"{arm}, on mlp", arm):
            if alone and found.curve(setting, name):
                parts = contrasts.gap(found.curve(setting, name), alone, LEARNT)
                text = "feed-forward" if name.endswith("mlp") else "all"
                yield about.gains("placement", f"{setting}, {arm}: {text} − attention", parts)
