"""The settings of a decision and of its campaign, and how they must agree with what is recorded."""

from dataclasses import dataclass
from typing import Any

from ablate.commands.decide_ledger import Campaign, Entry
from ablate.errors import UserError

ALPHA, DECISIONS = 0.05, 50  # of a campaign that says nothing else
MISS, FIRST, MOST = 0.1, 3, 20  # of a decision that says nothing else
FAILURES = 3  # seeds of a decision that may fail
KEPT = ("margin", "miss", "looks", "fresh")  # what a decision is known by, beside its question


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a decision is made.

    Attributes:
        margin: the smallest effect worth having, in units of the score.
        miss: error of a wrong reject at an effect of the margin.
        looks: numbers of seeds at which one looks.
        alpha: error rate of the whole campaign; None: what it began with, or the usual.
        decisions: that the campaign expects; None: likewise.
        failures: seeds that may fail.
        campaign_seeds: the most seeds of all decisions together; None: no bound.
        fresh: whether only seeds count that neither side has a run of.
        anew: whether a question that was answered is decided again, on fresh seeds.
        retry_failed: whether runs that failed are tried again.
    """

    margin: float
    miss: float = MISS
    looks: tuple[int, ...] = tuple(range(FIRST, MOST + 1))
    alpha: float | None = None
    decisions: int | None = None
    failures: int = FAILURES
    campaign_seeds: int | None = None
    fresh: bool = False
    anew: bool = False
    retry_failed: bool = False

    @property
    def kept(self) -> dict[str, Any]:
        """What a decision is opened with, JSON-ready."""
        asked = {"margin": self.margin, "miss": self.miss, "looks": list(self.looks)}
        return asked | {"fresh": self.fresh or self.anew}

    @property
    def reserved(self) -> int:
        """Seeds that may be needed: those of the last look, and those that may fail."""
        return self.looks[-1] + self.failures


def spending(campaign: Campaign, settings: Settings) -> dict[str, Any]:
    """Return the error rate of a campaign and the number of decisions that it expects.

    Raises:
        UserError: it has others than those asked for.
    """
    asked = {"alpha": settings.alpha, "decisions": settings.decisions}
    if campaign.settings is None:
        usual = {"alpha": ALPHA, "decisions": DECISIONS}
        return {name: usual[name] if value is None else value for name, value in asked.items()}
    for name, value in asked.items():
        if value is not None and value != campaign.settings[name]:
            raise UserError(
                f"--{name}={value:g}: this campaign began with {campaign.settings[name]:g}, which "
                "stays; another out= begins another campaign"
            )
    return campaign.settings


def known(campaign: Campaign, question: str, settings: Settings) -> Entry | None:
    """Return the decision that answers a question or is to, None where a new one is to be opened.

    Raises:
        UserError: there is one by another rule.
    """
    entries = [e for e in campaign.entries.values() if e.question == question]
    if not entries:
        return None
    last, asked = entries[-1], settings.kept
    other = {n: last.settings[n] for n in KEPT if last.settings[n] != asked[n]}
    if settings.anew:
        return last if last.closed is None and not other else None
    # What a decision began anew has for its settings is asked for again by the same words.
    if not other or other == {"fresh": True}:
        return last
    state = f"answered ({last.verdict})" if last.verdict else "begun"
    name = next(iter(other))
    raise UserError(
        f"--{name}={_short(asked[name])}: decision {last.number} has {state} this with "
        f"{_short(other[name])}; give that again, or --anew for another decision, on new seeds, "
        "that spends again"
    )


def _short(value: Any) -> str:
    if isinstance(value, list):
        shown = value if len(value) < 5 else [*value[:2], "...", value[-1]]
        return ",".join(map(str, shown))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
