"""The headlines of adapter and rank: every arm against full fine-tuning, else the first arm."""

from analysis.questions.adapters.section import STRATUM, arm_differences
from analysis.regression import second
from analysis.regression.study import Study
from analysis.report.headline import Headline, of_row


def headlines(study: Study) -> list[Headline]:
    """Return every arm less its reference, by data set, base model and side of the tasks."""
    table = arm_differences(study)
    found = []
    for row in table.to_dict("records") if len(table) else []:
        rows = study.main
        for name in STRATUM:
            rows = rows[rows[name].astype(str) == str(row[name])]
        if row["side"] != "both":
            rows = rows[rows["side"].astype(str) == str(row["side"])]
        arms = (str(row["arm"]), str(row["against"]))
        label, group = " − ".join(arms), study.place(row)
        other = second.of_study(study, rows, "arm", arms)
        found.append(of_row(row, label=label, group=group, question="adapters", second=other))
    return found
