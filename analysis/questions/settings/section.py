"""Other settings that a study varied (normaliser, scope, ...): each level less the usual one."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from analysis.inference.estimates import Estimate
from analysis.regression import second
from analysis.regression.study import STRATUM, Study
from analysis.report import plots, words
from analysis.report.headline import Headline, judged, of_row
from analysis.report.page import Plate, Section, Sheet
from analysis.report.tables import P_VALUE, Table
from analysis.table.cells import run_means, without_rank
from analysis.table.factors import factors_of, joined, level_text, most_common
from analysis.table.level_means import level_means
from analysis.table.run_panels import grouped

KEY = "settings"
Row = dict[str, object]


def section(study: Study) -> Section | None:
    """Return the section on settings that vary, or None where none does."""
    table = differences(study)
    if not len(table):
        return None
    group = [study.place(labels) for labels in table.to_dict("records")]
    label = table["setting"] + " " + table["level"] + " − " + table["against"]
    label += ", PLW " + table["plw"].map(words.plw_text) + table["at"].map(at_text)
    caption = (
        "Each level of a setting less the level that most runs have, among runs that are equal in "
        "everything else; levels that never ran beside that one are held against the most frequent "
        "of those that they ran beside. Points with 95 % intervals. Filled: distinguishable after "
        f"adjustment {study.adjusted}."
    )
    plate = Plate("settings", plots.forest(table.assign(group=group, label=label)), caption)
    note = f"Points; p is adjusted {study.adjusted}. At: settings that are not the usual ones."
    formats = dict.fromkeys(("estimate", "low", "high", "mde"), ".2f")
    formats |= {"p": P_VALUE, "p_holm": P_VALUE, "plw": ".4g"}
    sheets = [Sheet(Table("settings", "Settings", study.shown(table), note, words.HEADS, formats))]
    mean = over_weights(study)
    if len(mean):
        note = (
            "As above, the mean over the prompt loss weights at which both levels ran; p is "
            "adjusted by Holm over this table. A mean over weights is no finding for any one of "
            "them; it sees what is common to all."
        )
        title = "Settings, over all prompt loss weights"
        sheets.append(
            Sheet(Table("settings_mean", title, study.shown(mean), note, words.HEADS, formats))
        )
    return Section(KEY, "Other settings", (plate, *sheets))


def at_text(at: str) -> str:
    """Return where a comparison was made as the end of its label; "" for the usual settings."""
    return f", at {at}" if at else ""


def differences(study: Study) -> pd.DataFrame:
    """Return every level of a setting less its reference, by panel and PLW.

    Columns: side, dataset, model, setting, level, against, plw, at (what is not usual there),
    estimate, low, high, p, mde, p_holm, verdict.
    """
    found = [(row, gap) for row, gap in _gaps(study) if gap is not None]
    return judged(found, study.margin, questions=study.questions)


def over_weights(study: Study) -> pd.DataFrame:
    """Return the same over the weights of the prompt at which two levels ran; none of one weight.

    Columns: those of `differences` less plw, and weights, how many there were.
    """
    return study.once(
        "settings over weights", lambda: judged(list(_mean_gaps(study)), study.margin)
    )


def _mean_gaps(study: Study) -> Iterator[tuple[Row, Estimate]]:
    for head, own in _strata(study, STRATUM):
        if own["plw"].nunique() < 2:
            continue
        columns = factors_of(own).columns()
        for setting in study.varied:
            for family in families(own, setting, columns):
                levels = family.groupby("plw")[setting].transform("nunique")
                crossed = family[levels == family[setting].nunique()]
                if crossed["plw"].nunique() < 2:
                    continue
                for row, gap in _family_gaps(crossed, setting, study, columns):
                    if gap is not None:
                        yield head | row | {"weights": crossed["plw"].nunique()}, gap


def _strata(study: Study, by: tuple[str, ...]) -> Iterator[tuple[Row, pd.DataFrame]]:
    """Yield the runs of either side of the tasks by data set and what else is asked for."""
    for side in [s for s in words.SIDES if (study.rows["side"] == s).any()]:
        for labels, own in grouped(without_rank(run_means(study.rows, side=side)), by):
            yield {"side": side, **labels}, own


def not_compared(study: Study) -> list[str]:
    """Return a sentence for every level of a setting that no comparison has, and why."""
    found = [row for row, _ in _gaps(study)]
    known = {(row["setting"], row[n]) for row in found for n in ("level", "against")}
    silent = sorted({str(row["setting"]) for row, gap in _gaps(study) if gap is None})
    said = [
        f"{', '.join(silent)}: some levels have no replicates, so that their differences could not "
        f"be estimated."
    ] if silent else []  # fmt: skip
    for name in study.varied:
        lost = [level for level in study.factors[name].levels if (name, level) not in known]
        told = any(text.startswith(f"{name} ") for text in study.left_out)
        if lost and not told:
            said.append(
                f"{name} {', '.join(lost)}: no two runs there differ in {name} alone, so that it "
                f"is in no comparison of settings."
            )
    return said


def _gaps(study: Study) -> list[tuple[Row, Estimate | None]]:
    """Return every difference, None where there is no noise to judge it by."""
    return study.once("settings", lambda: list(_every_gap(study)))


def _every_gap(study: Study) -> Iterator[tuple[Row, Estimate | None]]:
    found: dict[str, list[tuple[Row, Estimate | None]]] = {name: [] for name in study.varied}
    for head, own in _strata(study, (*STRATUM, "plw")):
        at, columns = head | {"plw": float(str(head["plw"]))}, factors_of(own).columns()
        for setting, gaps in found.items():
            for family in families(own, setting, columns):
                gaps += [
                    (at | row, gap) for row, gap in _family_gaps(family, setting, study, columns)
                ]
    for gaps in found.values():
        yield from gaps


def _family_gaps(
    runs: pd.DataFrame, setting: str, study: Study, columns: Sequence[str]
) -> Iterator[tuple[Row, Estimate | None]]:
    """Yield every level of one setting less the usual one, else less the most frequent one."""
    means = level_means(runs, by=[setting], block=columns, df=study.df)
    levels = means.table[setting].map(level_text).astype(str)
    usual = study.usual[setting]
    against = usual if (levels == usual).any() else most_common(runs[setting], levels)[0]
    at = _unusual(runs, setting, study)
    for level in levels[levels != against]:
        row: Row = {"setting": setting, "level": level, "against": against, "at": at,
                    "replicated": means.replicated}  # fmt: skip
        yield row, means.compare(levels == level, levels == against)


def _unusual(runs: pd.DataFrame, setting: str, study: Study) -> str:
    """Return the other settings of which these runs have one level that is not the usual one."""
    found = []
    for name, usual in study.usual.items():
        levels = set(runs[name].map(level_text).astype(str)) if name != setting else set()
        if len(levels) == 1 and levels != {usual}:
            found.append(f"{name} {levels.pop()}")
    return ", ".join(found)


def families(
    runs: pd.DataFrame, setting: str, columns: Sequence[str] | None = None
) -> list[pd.DataFrame]:
    """Return the runs that can be compared with one another, a table per set of levels.

    Two runs belong together where they differ in this setting alone, and where others link them.
    Runs without such a partner are in no family.

    Args:
        runs: one row per run.
        setting: the column.
        columns: of the factors of these runs, where they are known.
    """
    columns = factors_of(runs).columns() if columns is None else columns
    if runs[setting].nunique() < 2:
        return []
    others = joined(runs, [n for n in columns if n != setting])
    several = runs.groupby(others)[setting].transform("nunique") > 1
    if not several.any():
        return []
    runs = runs[several]
    context, contexts = pd.factorize(others[several])
    level, levels = pd.factorize(runs[setting].map(level_text))
    nodes = len(contexts) + len(levels)
    links = (np.ones(len(runs)), (context, len(contexts) + level))
    _, part = connected_components(coo_array(links, shape=(nodes, nodes)), directed=False)
    return [own for _, own in runs.groupby(part[context], sort=False)]


def headlines(study: Study) -> list[Headline]:
    """Return every level of a setting less the usual one, by data set, side and PLW."""
    if study.at_own_rates:
        return []
    table = differences(study)
    found = []
    several = len(table) and table["plw"].nunique() > 1
    for row in table.to_dict("records"):
        rows = study.at(study.rows, row)
        rows = rows[rows["plw"].astype(float) == float(row["plw"])]
        levels = (str(row["level"]), str(row["against"]))
        weight = f", PLW {words.plw_text(float(row['plw']))}" if several else ""
        label = f"{row['setting']} {levels[0]} − {levels[1]}{weight}{at_text(row['at'])}"
        group = f"{study.place(row)}, settings"
        other = second.of_study(study, rows, str(row["setting"]), levels)
        found.append(of_row(row, label=label, group=group, question="settings", second=other))
    return found
