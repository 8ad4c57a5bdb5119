"""Held-out loss per role of the token: the same yardstick for every masking mode."""

import numpy as np
import pandas as pd

from analysis.inference.estimates import DF_RULES
from analysis.questions.adapters.section import against_reference
from analysis.regression.study import STRATUM
from analysis.report import plots, words
from analysis.report.headline import Headline, judged, of_row
from analysis.report.page import Block, Plate, Section, Sheet
from analysis.report.tables import P_VALUE, Table
from analysis.table.cells import ARM, without_rank
from analysis.table.level_means import Levels, level_means
from analysis.table.run_panels import grouped

KEY = "heldout"
# The order of the roles; one that is not named here comes last.
ROLES = ("completion", "text", "instruction", "input", "boilerplate", "system", "special")
LEARNT = ("completion", "text")  # the roles that a user of the model sees
LEVEL = ["masking", "plw", "wp"]
FORMATS = dict.fromkeys(("estimate", "low", "high", "mde"), ".4f")


def section(frame: pd.DataFrame, *, df: str = DF_RULES[0]) -> Section | None:
    """Return the section on held-out loss, or None where it was not measured."""
    rows = loss_rows(frame)
    if not len(rows):
        return None
    groups = grouped(rows, ["dataset", "role"])
    points = pd.concat([_means(own, df).table.assign(**labels) for labels, own in groups])
    points = points[["dataset", "role", *LEVEL, "n", "estimate", "low", "high"]]
    names = {"adapter": "adapter", "rank": "rank", "model": "base model", "seed": "seed"}
    adjusted = words.varying(rows, names)
    caption = (
        "Held-out loss per role of the token, in nats a token. Means"
        f"{adjusted and f' adjusted for {adjusted}'}, 95 % intervals. The loss on completions is "
        f"what a user of the model sees."
    )
    note = "Adjusted means of the runs with 95 % intervals, in nats a token."
    formats = FORMATS | {"plw": ".4g", "wp": ".4f"}
    table = Table("heldout", "Held-out loss per role", points, note, words.HEADS, formats)
    by, unit = ("dataset", "role"), "loss (nats/token)"
    plate = Plate("heldout_loss", plots.score_curves(points, None, by=by, unit=unit), caption)
    blocks: list[Block] = [plate] if points["wp"].nunique() > 1 else []
    blocks.append(Sheet(table))
    gaps = differences(frame, df=df)
    if len(gaps):
        blocks.append(Sheet(_gap_table(gaps)))
    arms = arm_differences(frame, df=df)
    if len(arms):
        blocks.append(Sheet(_arm_table(arms)))
    return Section(KEY, "Held-out loss per role", tuple(blocks))


def _means(rows: pd.DataFrame, df: str) -> Levels:
    return level_means(rows, LEVEL, value="value", df=df)


def loss_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the held-out losses of trained runs with their `role`, of the test split if any."""
    kept = (frame["task_type"] == "heldout") & ~frame["is_base"] & (frame["control"] == "")
    rows = frame[kept & frame["metric"].astype(str).str.startswith("loss_")]
    if "wp" not in rows or not len(rows):
        return rows.iloc[:0].assign(role="")
    tests = rows["task"].astype(str).str.contains("test")
    rows = rows[tests] if tests.any() else rows
    roles = rows["metric"].astype(str).str.removeprefix("loss_")
    found = sorted(roles.unique())
    present = [r for r in ROLES if r in found] + [r for r in found if r not in ROLES]
    rows = rows.assign(role=pd.Categorical(roles, present))
    return rows.sort_values(["dataset", "role"], kind="stable")


def differences(frame: pd.DataFrame, *, df: str = DF_RULES[0], questions: int = 1) -> pd.DataFrame:
    """Return the loss on completions of every masking and PLW less that at PLW 0.

    Columns: dataset, role, masking, plw, estimate, low, high, p, p_holm, mde, verdict.
    """
    rows = loss_rows(frame)
    learnt = rows[rows["role"].isin(LEARNT)]
    found = []
    for labels, own in grouped(learnt, ["dataset", "role"]):
        means = _means(own, df)
        zero = means.table["wp"] == 0
        for i in np.flatnonzero(~zero):
            gap = means.compare(pd.Series(np.arange(len(zero)) == i), zero)
            if gap is not None:
                level = {"masking": str(means.table["masking"].iloc[i])}
                level["plw"] = means.table["plw"].iloc[i]
                found.append((labels | level | {"replicated": means.replicated}, gap))
    return judged(found, None, questions=questions)


def arm_differences(
    frame: pd.DataFrame, *, df: str = DF_RULES[0], questions: int = 1
) -> pd.DataFrame:
    """Return the loss on completions of every arm less full fine-tuning's, or the first arm's.

    Columns: dataset, model, role, arm, against, estimate, low, high, p, p_holm, mde, verdict.
    """
    rows = loss_rows(frame)
    learnt = without_rank(rows[rows["role"].isin(LEARNT)])
    if len(learnt[list(ARM)].drop_duplicates()) < 2:
        return judged([], None, questions=questions)
    found = []
    for labels, own in grouped(learnt, [*STRATUM, "role"]):
        means = level_means(own, ARM, value="value", df=df)
        for arms, gap in against_reference(means):
            found.append((labels | arms | {"replicated": means.replicated}, gap))
    return judged(found, None, questions=questions)


def headlines(frame: pd.DataFrame) -> list[Headline]:
    """Return the differences in loss as effects, for a page without a model of scores.

    Weights and arms are two questions where both vary: p is adjusted for their number as well.
    """
    rows = without_rank(loss_rows(frame))
    asked = sum(len(rows[list(names)].drop_duplicates()) > 1 for names in (("wp",), ARM))
    weights, arms = (t(frame, questions=max(asked, 1)) for t in (differences, arm_differences))
    by_weight = [
        (row, f"{row['masking']}, PLW {words.plw_text(float(row['plw']))}", row["dataset"],
         " less that at PLW 0", "heldout")
        for row in weights.to_dict("records")
    ]  # fmt: skip
    by_arm = [
        (row, f"{row['arm']} − {row['against']}", f"{row['dataset']}, {row['model']}", "",
         "adapters")
        for row in arms.to_dict("records")
    ]  # fmt: skip
    return [
        of_row(row, label=label, group=f"{place}: loss on {row['role']} tokens{against}",
               question=question, unit="nats a token")
        for row, label, place, against, question in (*by_weight, *by_arm)
    ]  # fmt: skip


def _arm_table(gaps: pd.DataFrame) -> Table:
    against = " or ".join(dict.fromkeys(gaps["against"]))
    note = f"Nats a token, less {against}. Lower is better. p is adjusted by Holm."
    formats = FORMATS | {"p": P_VALUE, "p_holm": P_VALUE}
    title = f"Loss on completions against {against}"
    return Table("heldout_arms", title, gaps, note, words.HEADS, formats)


def _gap_table(gaps: pd.DataFrame) -> Table:
    note = "Nats a token, less the runs at PLW 0. Lower is better. p is adjusted by Holm."
    title = "Loss on completions against PLW 0"
    formats = FORMATS | {"p": P_VALUE, "p_holm": P_VALUE, "plw": ".4g"}
    return Table("heldout_differences", title, gaps, note, words.HEADS, formats)
