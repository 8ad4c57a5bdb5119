"""The headlines of the other settings: each level against the usual one."""

from analysis.questions.settings.section import STRATUM, at_text, differences
from analysis.regression import second
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.headline import Headline, of_row


def headlines(study: Study) -> list[Headline]:
    """Return every level of a setting less the usual one, by data set, side and PLW."""
    table = differences(study)
    found = []
    several = len(table) and table["plw"].nunique() > 1
    for row in table.to_dict("records") if len(table) else []:
        rows = study.rows
        for name in STRATUM:
            rows = rows[rows[name].astype(str) == str(row[name])]
        rows = rows[rows["plw"].astype(float) == float(row["plw"])]
        if row["side"] != "both":
            rows = rows[rows["side"].astype(str) == str(row["side"])]
        levels = (str(row["level"]), str(row["against"]))
        weight = f", PLW {words.plw_text(float(row['plw']))}" if several else ""
        label = f"{row['setting']} {levels[0]} − {levels[1]}{weight}{at_text(row['at'])}"
        group = f"{study.place(row)}, settings"
        other = second.of_study(study, rows, str(row["setting"]), levels)
        found.append(of_row(row, label=label, group=group, question="settings", second=other))
    return found
