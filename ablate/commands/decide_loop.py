"""The referee behind `ablate decide`: runs seeds of two sides until their rule gives a verdict."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ablate import interrupts
from ablate.commands.decide_ledger import LOOK, OPEN, VERSION, Campaign, DecisionLedger, Entry
from ablate.commands.decide_pair import Change, PairedRuns, Side, pair, scores
from ablate.commands.decide_settings import Settings, known, spending
from ablate.commands.decide_view import rule_of, told
from ablate.errors import LeaseLost, UserError
from ablate.experiment.request import check_machine
from ablate.results import heart
from ablate.results.store import Store

if TYPE_CHECKING:
    from analysis.planning.paired import Rule

WAIT_SECONDS = 1.0  # between two looks at a decision that another process makes
Train = Callable[[list[str]], int]  # carries out a grid and returns the exit status


class Stopped(Exception):
    """Training ended before its end; the same command goes on. Its line was printed."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _lease(entry: Entry) -> str:
    """Return the key of the lease under which one process goes on with a decision."""
    return f"decision-{entry.number}"


@dataclass(frozen=True, slots=True)
class Referee:
    """One request under its settings, on one folder of results."""

    request: Change
    settings: Settings
    store: Store
    config_dirs: Sequence[str]
    train: Train
    planned: dict[tuple[int, ...], PairedRuns] = field(default_factory=dict)

    @property
    def ledger(self) -> DecisionLedger:
        """The campaign's."""
        return DecisionLedger(self.store)

    def decide(self) -> dict[str, Any]:
        """Return what came of the request; see `told`.

        Raises:
            UserError: the request is wrong, or is not what an earlier one of it was.
            Stopped: training was ended; the same command goes on.
        """
        asked = self.pair(self.seeds(None))
        if asked.same:
            return self.same(asked)
        check_machine(side.by_seed[0].cell for side in asked.sides)
        self.store.prepare()
        while True:
            # A process that stood still for so long that another took its place begins anew: the
            # ledger has what that one found.
            with contextlib.suppress(LeaseLost):
                return self._decided(asked)

    def _decided(self, asked: PairedRuns) -> dict[str, Any]:
        """Return what came of a request, which is answered, or gone on with by one process."""
        with self.ledger.changing() as campaign:
            entry = known(campaign, asked.question, self.settings)
            if entry is not None and entry.closed is not None:
                return self.told(campaign, entry, asked_before=True)
            if entry is None:
                entry = self._open(campaign, asked.question)
        while True:
            with self.store.claim(_lease(entry)) as mine:
                if mine:
                    return self._go_on(entry.number)
            interrupts.check()
            time.sleep(WAIT_SECONDS)

    def pair(self, seeds: Sequence[int]) -> PairedRuns:
        """Return both sides under `seeds`; they are planned once."""
        known, key = self.planned, tuple(seeds)
        if key not in known:
            known[key] = pair(self.request, key, config_dirs=self.config_dirs)
        return known[key]

    def rule(self, campaign: Campaign) -> "tuple[Rule, list[Entry]]":
        """Return the rule of the next decision of a campaign, and whose rate is passed on to it.

        Raises:
            UserError: the campaign has other settings than those asked for.
        """
        from analysis.errors import AnalysisError
        from analysis.planning.campaign import rate
        from analysis.planning.paired import Rule

        spends = spending(campaign, self.settings)
        passed_on = campaign.unused()
        rates = [float(entry.rule["alpha"]) for entry in passed_on]
        number = max(campaign.entries, default=0) + 1
        alpha = rate(spends["alpha"], number, spends["decisions"], rates)
        try:
            return Rule(
                self.settings.margin, alpha, self.settings.miss, self.settings.looks
            ), passed_on
        except AnalysisError as error:
            raise UserError(f"--{error}") from error

    def seeds(self, fresh_from: int | None) -> range:
        """Return the seeds that a decision may use, in order."""
        start = fresh_from or 0
        return range(start, start + self.settings.reserved)

    def fresh_from(self, campaign: Campaign) -> int | None:
        """Return the first of the seeds that a new decision has for its own, if it has any."""
        if not (self.settings.fresh or self.settings.anew):
            return None
        start, count = campaign.next_seed, self.settings.reserved
        while True:
            tried = range(start, start + count)
            both = self.pair(tried)
            known = [
                seed for seed in tried for side in both.sides if not side.by_seed[seed].cell.is_base
                and self.store.record(side.key(seed)) is not None
            ]  # fmt: skip
            if not known:
                return start
            start = max(known) + 1

    def _open(self, campaign: Campaign, question: str) -> Entry:
        """Write a new decision into the ledger; its rule is fixed from here on."""
        rule, passed_on = self.rule(campaign)
        number = max(campaign.entries, default=0) + 1
        fresh_from = self.fresh_from(campaign)
        seeds = self.seeds(fresh_from)
        both = self.pair(seeds)
        if campaign.settings is None:
            campaign.settings = spending(campaign, self.settings)
            self.ledger.add({"event": "campaign", "version": VERSION, **campaign.settings})
        here = {
            name: [s for s in seeds if both.scored(self.store, side, s)]
            for name, side in zip(("base", "candidate"), both.sides, strict=True)
        }
        about = {
            "base": {"overrides": list(self.request.base), "train_key": both.base.key(seeds[0])},
            "candidate": {
                "overrides": list(self.request.candidate),
                "train_key": both.candidate.key(seeds[0]),
            },
            "common": list(self.request.common),
            "score": self.request.score,
            "recorded_before": here,
        }
        entry = Entry(
            number, question, self.settings.kept | {"reserved": self.settings.reserved},
            asdict(rule), rule.sha256, fresh_from, [e.number for e in passed_on], about,
        )  # fmt: skip
        opened = {name: getattr(entry, name) for name in OPEN}
        self.ledger.add({"event": "open", "decision": number} | opened)
        campaign.entries[number] = entry
        return entry

    def _go_on(self, number: int) -> dict[str, Any]:
        """Run seeds of an open decision until its rule says so, or nothing more may be run."""
        from analysis.planning.paired import verdict

        campaign = self.ledger.read()
        entry = campaign.entries[number]
        rule, trained = rule_of(entry), 0
        both = self.pair(self.seeds(entry.fresh_from))
        if self.settings.retry_failed:
            entry.failed = []
        while entry.closed is None:
            found = verdict(rule, entry.differences, resolution=entry.resolution)
            if found is not None:
                return self._close(entry, found, trained)
            ahead = next(n for n in rule.looks if n > len(entry.differences))
            why = self._over_budget(ahead - len(entry.differences))
            if not why:
                trained += self._run(both, entry, ahead)
                why = self._too_many_failed(entry)
            if why:
                return self.told(campaign, entry, why=why, trained=trained)
            self._look(both, entry)
        return self.told(campaign, entry, asked_before=True)

    def _too_many_failed(self, entry: Entry) -> str:
        if len(entry.failed) <= self.settings.failures:
            return ""
        return (
            f"{len(entry.failed)} seeds failed, more than {self.settings.failures}; "
            f"`ablate status {self.store.out}` says why, --retry-failed tries them again"
        )

    def _over_budget(self, more: int) -> str:
        used, most = self.ledger.read().seeds, self.settings.campaign_seeds
        if most is None or used + more <= most:
            return ""
        return (
            f"the campaign has used {used} of {most} seeds and the next look needs {more} more; "
            "a larger --campaign-seeds goes on"
        )

    def _run(self, both: PairedRuns, entry: Entry, count: int) -> int:
        """Give the entry `count` seeds whose runs are scored; return how many runs were trained.

        A seed of which a side failed, or has no finite score, does not count; the next one does.
        """
        trained = 0
        while len(entry.failed) <= self.settings.failures:
            free = [s for s in both.base.by_seed if s not in entry.seeds + entry.failed]
            tried = free[: count - len(entry.seeds)]
            if not tried:
                return trained
            for side in both.sides:
                trained += self._train(both, side, tried)
            there = scores(both, self.store, tried).by_run
            for seed in tried:
                whole = all(both.scored(self.store, side, seed) for side in both.sides)
                told = ("base", seed) in there and ("candidate", seed) in there
                (entry.seeds if whole and told else entry.failed).append(seed)
        return trained

    def _train(self, both: PairedRuns, side: Side, seeds: Sequence[int]) -> int:
        """Train what a side lacks under `seeds`; return how many runs were recorded by it."""
        again = self.settings.retry_failed
        lacking = [
            seed for seed in seeds if not both.scored(self.store, side, seed)
            or (again and both.lost(self.store, side, seed))
        ]  # fmt: skip
        if not lacking:
            return 0
        grid = f"seed={','.join(map(str, lacking))}"
        retry = ["retry_failed=true"] * again
        status = self.train([*side.words, grid, "report=false", "score_base=false", *retry])
        if status not in (0, 1):
            raise Stopped(status)
        return sum(both.scored(self.store, side, seed) for seed in lacking)

    def _look(self, both: PairedRuns, entry: Entry) -> None:
        """Write the differences of an entry's seeds into the ledger.

        Those of earlier looks stay as they were seen, whatever became of their records.
        """
        new = entry.seeds[len(entry.differences) :]
        found = scores(both, self.store, new)
        entry.differences = [
            *entry.differences,
            *(found.by_run["candidate", seed] - found.by_run["base", seed] for seed in new),
        ]
        entry.resolution = max(entry.resolution, found.resolution)
        self._add(entry, {"event": "look"} | {name: getattr(entry, name) for name in LOOK})

    def _add(self, entry: Entry, event: dict[str, Any]) -> Campaign:
        """Write a line about an open decision, which this process must still hold."""
        with self.ledger.changing() as campaign:
            heart.check(self.store.claims, _lease(entry))
            self.ledger.add({"decision": entry.number} | event)
        return campaign

    def _close(self, entry: Entry, found: str, trained: int) -> dict[str, Any]:
        entry.closed = {"verdict": found}
        campaign = self._add(entry, {"event": "close"} | entry.closed)
        campaign.entries[entry.number] = entry
        return self.told(campaign, entry, trained=trained)

    def same(self, asked: PairedRuns) -> dict[str, Any]:
        """Return the answer where both sides are the same run."""
        key = asked.base.key(asked.first)
        return {
            "verdict": "reject",
            "why": f"base and candidate are the same run ({key}): nothing is spent",
            "decision": None,
            "same_run": True,
            "out": str(self.store.out),
        }

    def told(
        self,
        campaign: Campaign,
        entry: Entry,
        *,
        why: str = "",
        trained: int = 0,
        asked_before: bool = False,
    ) -> dict[str, Any]:
        """Return what is known of a decision, JSON-ready."""
        return told(campaign, entry, why=why) | {
            "runs_trained": trained,
            "asked_before": asked_before,
            "same_run": False,
            "out": str(self.store.out),
        }
