"""The two sides of a decision: their runs by seed, whether they compare, and their scores."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ablate.config.overrides import key_of, parse, top_of
from ablate.errors import UserError, unknown
from ablate.experiment.design import Named
from ablate.experiment.identity import Unit, digest
from ablate.experiment.known import Here
from ablate.experiment.request import plan_grid
from ablate.results.record import SCORES
from ablate.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

BENCHMARKS = "benchmarks"
PARTS = ("test", "validation")  # whose held-out loss may be the score
OWN = ("seed", "report", "score_base", "single", "skip_illegal", "retry_failed")
ABOUT_BOTH = ("out", "rates", "evaluate", "scale")  # the same for both sides


@dataclass(frozen=True, slots=True)
class Change:
    """What is compared, in words: overrides of each side, of both, and the score."""

    base: tuple[str, ...]
    candidate: tuple[str, ...]
    common: tuple[str, ...]
    score: str = BENCHMARKS

    def words(self, side: str) -> list[str]:
        """Return the overrides of one side, `base` or `candidate`, without a seed."""
        return [*self.common, *getattr(self, side)]


@dataclass(frozen=True, slots=True)
class Side:
    """One side: its runs by seed, and the units of their scores that count."""

    words: list[str]
    by_seed: Mapping[int, Named]

    def key(self, seed: int) -> str:
        """Return the train_key of the run of a seed."""
        return self.by_seed[seed].key


@dataclass(frozen=True, slots=True)
class PairedRuns:
    """Both sides of a decision under the same seeds."""

    base: Side
    candidate: Side
    score: str

    @property
    def sides(self) -> tuple[Side, Side]:
        """Base and candidate."""
        return self.base, self.candidate

    @property
    def first(self) -> int:
        """The smallest seed."""
        return min(self.base.by_seed)

    @property
    def same(self) -> bool:
        """Whether both sides are the same runs."""
        return self.base.key(self.first) == self.candidate.key(self.first)

    @property
    def question(self) -> str:
        """What is asked, by what the two sides train and are scored on at one seed."""
        seed = self.first
        keys = [[side.key(seed), sorted(self.units(side, seed))] for side in self.sides]
        return digest({"runs": keys, "score": self.score})

    def units(self, side: Side, seed: int) -> dict[str, str]:
        """Return the score keys of a run that count, and the name of what each is a score of."""
        return {u.key: u.name for u in side.by_seed[seed].identity.units if _counts(self.score, u)}

    def scored(self, store: Store, side: Side, seed: int) -> bool:
        """Return whether a run is recorded with all its scores that count."""
        return self.units(side, seed).keys() <= store.scored(side.key(seed))

    def lost(self, store: Store, side: Side, seed: int) -> bool:
        """Return whether a score of a run that counts was tried and failed."""
        record = store.record(side.key(seed)) or {}
        lost = {one["score_key"] for one in record.get("unscored", ())}
        return not self.units(side, seed).keys().isdisjoint(lost)


def words_of(text: str, name: str) -> tuple[str, ...]:
    """Return the overrides of a side, which are one word of the command line.

    Raises:
        UserError: quotes in it do not match, or a word of it is no override.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"{name}={text}: {str(error).lower()}") from None
    for word in words:
        if top_of(key_of(word)) in ABOUT_BOTH:
            raise UserError(f"{word}: is the same for both sides; give it behind them")
    return words


def check_words(words: Iterable[str]) -> None:
    """Check the overrides of both sides.

    Raises:
        UserError: one is ours to choose, or has several levels.
    """
    for word in words:
        if (key := key_of(word)) in OWN:
            said = {"seed": "the rule says which seeds are run", "retry_failed": "--retry-failed"}
            raise UserError(f"{word}: leave it out: {said.get(key, 'ablate decide sets it')}")
        if parse(word).is_sweep_override():
            raise UserError(f"{word}: one level is compared with one, not several")


def pair(
    request: Change,
    seeds: Sequence[int],
    *,
    config_dirs: Sequence[str],
    known: Here | None = None,
) -> PairedRuns:
    """Return both sides under `seeds`, checked.

    Raises:
        UserError: a side is illegal, or the two are not scored on the same.
    """
    sides = []
    for name in ("base", "candidate"):
        asked = [*request.words(name), f"seed={','.join(map(str, seeds))}", "score_base=false"]
        cells = plan_grid(asked, config_dirs=config_dirs, known=known).design.cells
        if len(cells) not in (1, len(seeds)):
            raise UserError(f"{name}: is {len(cells)} cells under {len(seeds)} seeds, not one each")
        # The untouched base model has no seed: it is one run under all of them.
        runs = cells * len(seeds) if len(cells) == 1 else cells
        sides.append(Side(request.words(name), dict(zip(seeds, runs, strict=True))))
    found = PairedRuns(sides[0], sides[1], request.score)
    _check_score(found)
    return found


def _check_score(pair: PairedRuns) -> None:
    cells = [side.by_seed[pair.first].cell for side in pair.sides]
    units = [list(pair.units(side, pair.first).values()) for side in pair.sides]
    if pair.score not in (BENCHMARKS, *PARTS, *cells[0].evaluate.tasks):
        raise unknown("--score", pair.score, [BENCHMARKS, *PARTS, *cells[0].evaluate.tasks])
    if not units[0]:
        name = cells[0].evaluate.name
        raise UserError(
            f"--score={pair.score}: nothing of it is scored with evaluate={name}; benchmarks are "
            "with evaluate=micro, say, and the loss of held-out rows with evaluate.heldout=[test]"
        )
    if pair.score in PARTS:  # benchmarks ask both sides the same items
        asked = [
            {rest for kind, name, rest in side.by_seed[pair.first].identity.asked
             if (kind, name) == ("heldout", pair.score)}
            for side in pair.sides
        ]  # fmt: skip
        if asked[0] != asked[1]:
            raise UserError(
                f"--score={pair.score}: base and candidate have other held-out rows or another "
                "tokenizer, so their losses cannot be compared; --score benchmarks can"
            )


def _counts(score: str, unit: Unit) -> bool:
    if score in PARTS:
        return unit.kind == "heldout" and unit.name == score
    return unit.kind == "task" and score in (BENCHMARKS, unit.name)


@dataclass(frozen=True, slots=True)
class PairScores:
    """Scores of runs, higher is better."""

    by_run: Mapping[tuple[str, int], float]  # (side, seed)
    unit: str
    resolution: float  # the smallest step that a score can make


def scores(pair: PairedRuns, store: Store, seeds: Iterable[int]) -> PairScores:
    """Return the scores of the runs of both sides, as the report has them.

    Benchmarks are in points, each of the same weight; a held-out loss has its sign turned. Runs
    that lack a finite score are left out: a mean over other benchmarks than the other side's would
    be no comparison.
    """
    import pandas as pd

    from analysis.table.frame import from_results

    rows = []
    for name, side in zip(("base", "candidate"), pair.sides, strict=True):
        for seed in seeds:
            record, units = store.record(side.key(seed)), pair.units(side, seed)
            if record is None or not _whole(record["scores"], units):
                continue
            for score in record["scores"]:
                if score["score_key"] in units:
                    own = {key: score.get(key) for key in SCORES}
                    rows.append({"train_key": f"{name} {seed}", "seed": seed} | own)
    if not rows:
        return PairScores({}, unit_of(pair.score), 0.0)
    table = pd.DataFrame(rows)
    if pair.score in PARTS:
        return PairScores(_losses(table), unit_of(pair.score), 0.0)
    frame = from_results(table.assign(plw=0.0, adapter="full", lr=0.0))
    tasks, runs = frame["task"].nunique(), frame.groupby("run", observed=True)
    means = runs["score"].mean()[runs["task"].nunique() == tasks]
    n = pd.to_numeric(frame["n"], errors="coerce").max()
    step = abs(float(frame["to_points"].iloc[0])) / (tasks * n) if n > 0 else 0.0
    return PairScores(_by_run(means), unit_of(pair.score), step)


def _whole(found: Iterable[Mapping[str, Any]], units: Iterable[str]) -> bool:
    """Return whether every unit has a score."""
    return {s["score_key"] for s in found if s["value"] is not None}.issuperset(units)


def _losses(table: "pd.DataFrame") -> dict[tuple[str, int], float]:
    from analysis.table.validation_losses import LOSSES

    own = table[table["metric"].isin(LOSSES)]
    return _by_run(-own.groupby("train_key")["value"].mean())


def _by_run(means: "pd.Series[float]") -> dict[tuple[str, int], float]:
    found = {}
    for name, value in means.items():
        side, _, seed = str(name).partition(" ")
        if math.isfinite(value):
            found[side, int(seed)] = float(value)
    return found


def unit_of(score: str) -> str:
    """Return the unit of a score."""
    return "nats a token" if score in PARTS else "points"
