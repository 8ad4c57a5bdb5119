"""The figures and claims of LoRA Learns Less and Forgets Less, here beside what was published."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from analysis.papers.lora_tradeoffs import figure as figures
from analysis.papers.lora_tradeoffs.claims import CLAIMS, MARGIN_NATS, tradeoff_claims
from analysis.papers.lora_tradeoffs.contrasts import KEPT, LEARNT, estimates, levels
from analysis.papers.lora_tradeoffs.reading import tradeoff_of
from analysis.papers.lora_tradeoffs.runs import (
    NATS,
    SETTINGS,
    TEXT,
    Own,
    Tradeoff,
    by_seed,
)
from analysis.papers.lora_tradeoffs.spectrum import spectrum
from analysis.papers.verdicts import UNTESTABLE, summary
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import Table
from analysis.table.factors import FULL

KEY = "lora-tradeoffs"
TITLE = "LoRA against full tuning over budgets, here and published"
CANNOT = (
    "What cannot be compared: the paper's model has 7 billion parameters, its learning is that of "
    "HumanEval and GSM8K, its forgetting that of HellaSwag, ARC-Challenge and WinoGrande, and it "
    "has one run a cell; orders and directions can be compared, levels cannot. Figures without a "
    "counterpart: 5 and S9 (nothing is sampled), S4 to S6 (judged chat), S7 and S8 (spectra of "
    "single matrices) and S10 (speed of eight GPUs)."
)
ENDS = [f"{n}{end}" for n in (LEARNT, KEPT) for end in ("", "_low", "_high")]
HEADS = words.HEADS | {
    "near_best": "verdict, rates by parabola", "kindest": "verdict, rates that keep most",
    "end": "best rate", "kept": "source tasks",
    "learnt_low": "95 % low", "learnt_high": "95 % high", "kept_low": "95 % low",
    "kept_high": "95 % high",
}  # fmt: skip
FORMATS = dict.fromkeys(("estimate", "low", "high", "mde"), ".3g")
POINTS = {n: ".3f" if n.startswith(LEARNT) else ".2f" for n in ENDS} | {"rate": ".2g"}
FEWEST_SEEDS = 3
FIRST = ("learns", "grows", "forgets", "matched")  # the claims of the summary


def section(study: Study) -> Section | None:
    """Return the section; None without runs of the paper's settings over several budgets."""
    found = tradeoff_of(study.frame, study.raw)
    if found is None or found.runs.groupby("setting")["budget"].nunique().max() < 2:
        return None
    claims = tradeoff_claims(found, study.frame, study.margin)
    lead = _lead(claims)
    lost = missing(found)
    said = [Text(f"Not there: {'; '.join(lost)}.")] if lost else []
    blocks = [Text(lead), *said, Text(CANNOT), *_claims(study, claims), *_figures(study, found)]
    return Section(KEY, TITLE, tuple(blocks), lead)


def _lead(claims: pd.DataFrame) -> str:
    table = summary(claims).set_index("claim")["verdict"]
    told = [CLAIMS[name] for name in FIRST if table[CLAIMS[name]] != UNTESTABLE]
    said = "; ".join(f"“{claim}”: {table[claim]}" for claim in told)
    return f"The paper's claims here. {said}." if said else "No claim of the paper can be tested."


def missing(found: Tradeoff) -> list[str]:
    """Return in words what of the design is not in the results."""
    said = [f"{setting}" for setting in SETTINGS if setting not in found.settings]
    for setting in found.settings:
        if not found.curve(setting, FULL):
            said.append(f"full tuning on {setting}")
        if not found.ranks(setting):
            said.append(f"LoRA on {setting}")
    variants = set(found.runs["variant"])
    for text, word in (
        ("weight decay", "weight decay"), ("attention dropout", "attention dropout"),
        ("LoRA on attention alone", "on attention"), ("a second optimizer", "adamw"),
        ("other values of alpha", "alpha"), ("embeddings the other way round", "embeddings"),
    ):  # fmt: skip
        if not any(word in variant for variant in variants):
            said.append(text)
    seeds = min((len(p.learnt.curve.seeds) for p in found.points), default=0)
    if seeds < FEWEST_SEEDS:
        alone = "one seed has no noise to judge by" if seeds == 1 else "their noise is hardly known"
        said.append(f"more seeds (some arms have {words.count(seeds, 'seed')}: {alone})")
    tried = [p for p in found.points if len(p.learnt.curve.rate_K) > 1]
    ends = sum(bool(p.end) for p in tried)
    if ends:
        said.append(
            f"rates beyond those tried ({ends} of {len(tried)} arms and budgets are best at an end)"
        )
    return said


def _claims(study: Study, claims: pd.DataFrame) -> Iterator[Block]:
    note = (
        "Biderman et al., arXiv 2405.09673. Each arm at the rate of lowest validation loss, the "
        "mean over seeds, of those tried; numbers of test rows. Intervals are 95 % each, not "
        "adjusted for their number, from what the seeds differ in, moderated over the lines of a "
        "claim; items and base model are these. Margins of equivalence: "
        f"±{study.margin:g} points, ±{MARGIN_NATS:g} nats a token. Last two columns: the verdict "
        "with rates at the lowest point of a parabola through the best one tried and its "
        f"neighbours, and with the rate that keeps most of the source tasks among those whose "
        f"validation loss is within {MARGIN_NATS:g} nats of the lowest."
    )
    yield Sheet(Table("lora_tradeoffs_summary", "The paper's claims: verdicts", summary(claims),
                      note), open=True)  # fmt: skip
    yield Sheet(Table("lora_tradeoffs_claims", "The paper's claims, one by one", claims, note,
                      HEADS, FORMATS))  # fmt: skip


def _figures(study: Study, found: Tradeoff) -> Iterator[Block]:
    plain = [p for p in found.points if "," not in p.arm]
    table, unit = levels(plain), found.unit
    whole = levels(found.points)
    note = (
        f"learnt: {'held-out loss below the base’s' if unit == NATS else 'target tasks'}, {unit}; "
        "source tasks: mean accuracy, points. best rate: where it is an end of those tried."
    )
    title = "Every arm at its own rate"
    yield Sheet(Table("lora_tradeoffs_arms", title, whole, note, HEADS, POINTS))
    caption = (
        "{} over the budget: above here, each arm at its own rate, means over seeds with 95 % "
        "intervals; below published, one run a point (7B model; tables S1 to S8)."
    )
    for outcome, text in ((LEARNT, "Figure 1: learning"), (KEPT, "Figure 2: forgetting")):
        drawn = table.rename(
            columns={outcome: "estimate", f"{outcome}_low": "low", f"{outcome}_high": "high"}
        )
        yield Plate(f"lora_tradeoffs_{outcome}",
                    figures.over_budgets(drawn, outcome, unit, found.base),
                    caption.format(text))  # fmt: skip
    caption = (
        "Figure 3: learning over what is kept of the source tasks, larger markers for larger "
        "budgets; up and to the right is better. The Pareto front is that of the means. Above "
        "here, with 95 % intervals; below published."
    )
    yield Plate("lora_tradeoffs_front", figures.traded(table, unit), caption)
    yield from _beside(found)
    drawn = spectrum(found, study.frame)
    drawn = drawn[(drawn["arm"] == FULL) & drawn["setting"].str.endswith(TEXT)]
    if len(drawn):
        by = ["setting", "budget", "kind"]
        mean = drawn.sort_values("setting", kind="stable").groupby(by, sort=False)["share"].mean()
        caption = (
            "Figure 6: of how high a rank the change of full tuning is, by kind of matrix and by "
            "layer, means over seeds. Band: matrices of Gaussian noise, square to four times as "
            "wide as high: a share in it is no evidence that a high rank is needed. Published "
            "without numbers, but for about 2,000 of 4,096 for q_proj (0.49)."
        )
        yield Plate("lora_tradeoffs_spectra", figures.spectra(mean.reset_index()), caption)
    yield from _rates(found, plain)


def _beside(found: Tradeoff) -> Iterator[Block]:
    """Yield figures 4 and 7, and the embeddings: arms with something changed beside plain ones."""
    kinds = (
        ("regularisers", ("weight decay", "attention dropout"), "Figure 4: full tuning under "
         "weight decay and attention dropout beside full tuning and LoRA. Published without "
         "numbers: regularised full tuning learns and forgets like full tuning, the smallest rank "
         "least."),
        ("placement", ("on attention", "on mlp"), "Figure 7: LoRA on attention, on the "
         "feed-forward part, and on both. Published without numbers: attention alone is worst, "
         "the feed-forward part close to all."),
        ("embeddings", ("embeddings",), "Embeddings the other way round: frozen in full tuning, "
         "trained beside LoRA. The paper has the plain arms alone."),
    )  # fmt: skip
    for name, words_of, caption in kinds:
        for setting in found.settings:
            own = [p for p in found.points if p.setting == setting]
            changed = [p for p in own if any(w in p.arm for w in words_of)]
            budgets = {p.budget for p in changed}
            if not changed:
                continue
            budget = max(budgets)
            plain = [p for p in own if p.budget == budget and "," not in p.arm]
            there = [*plain, *(p for p in changed if p.budget == budget)]
            unit = "steps" if setting.endswith(TEXT) else "epochs"
            text = f"{caption} {setting}, {budget:g} {unit}; means with 95 % intervals."
            stem = f"lora_tradeoffs_{name}_{setting.replace(' ', '_').lower()}"
            yield Plate(stem, figures.beside(_long(there), found.unit), text)


def _long(points: Sequence[Own]) -> pd.DataFrame:
    """Return arm, outcome, estimate, low, high of some arms at one budget."""
    table = levels(points)
    parts = [
        table[["arm", n, f"{n}_low", f"{n}_high"]]
        .set_axis(["arm", "estimate", "low", "high"], axis=1)
        .assign(outcome=n)
        for n in (LEARNT, KEPT)
    ]
    return pd.concat(parts, ignore_index=True)


def _rates(found: Tradeoff, plain: Sequence[Own]) -> Iterator[Block]:
    """Yield figures S1 to S3: learning over the rates tried, at the largest budget of each."""
    longest = {s: max(p.budget for p in plain if p.setting == s) for s in found.settings
               if any(p.setting == s for p in plain)}  # fmt: skip
    main = [(s, p) for s, budget in longest.items() for p in plain
            if (p.setting, p.budget) == (s, budget) and len(p.learnt.curve.rate_K) > 1]  # fmt: skip
    end = " Means over seeds with 95 % intervals; filled: the rate that the validation rows choose."
    caption = (
        "Figure S1: learning over the learning rate, at the longest budget. Published without "
        "numbers, but for the best rates: LoRA 5e-4 and full tuning 5e-5 on code instructions, "
        "2e-4 and 1e-5 on mathematics."
    )
    if main:
        yield Plate("lora_tradeoffs_rates", figures.over_rates(_over_rates(main), found.unit),
                    caption + end)  # fmt: skip
    other = [*_changed(found, "S2: optimizer", "adamw"), *_changed(found, "S3: alpha", "alpha")]
    if any(len(p.learnt.curve.rate_K) > 1 for _, p in other):
        caption = (
            "Figures S2 and S3: learning over the learning rate under another optimizer, and "
            "under other values of alpha. Published without numbers: LionW above AdamW, an alpha "
            "of twice the rank best at every rate."
        )
        yield Plate("lora_tradeoffs_other_rates",
                    figures.over_rates(_over_rates(other), found.unit), caption + end)  # fmt: skip


def _changed(found: Tradeoff, panel: str, word: str) -> list[tuple[str, Own]]:
    """Return the arms changed in one way and the plain ones of the same budgets."""
    changed = [p for p in found.points if f", {word}" in p.arm]
    places = {(p.setting, p.budget, p.arm.partition(", ")[0]) for p in changed}
    plain = [p for p in found.points if (p.setting, p.budget, p.arm) in places]
    several = len({setting for setting, _, _ in places}) > 1
    return [(f"{panel}, {p.setting}" if several else panel, p) for p in [*plain, *changed]]


def _over_rates(points: Sequence[tuple[str, Own]]) -> pd.DataFrame:
    """Return panel, arm, rate, estimate, low, high and chosen, a row per rate tried."""
    rows = []
    for panel, own in points:
        curve = own.learnt.curve
        parts = [by_seed(v_S, curve.seeds) for v_S in curve.score_SK.T]
        for rate, found in zip(curve.rate_K, estimates(parts, [""] * len(parts)), strict=True):
            rows.append({
                "panel": panel, "arm": own.arm, "rate": rate, "estimate": found.estimate,
                "low": found.low, "high": found.high,
                "chosen": bool(np.isclose(rate, own.rate)),
            })  # fmt: skip
    return pd.DataFrame(rows)
