"""The headlines of adapter and rank: every arm against full fine-tuning, else the first arm."""

from analysis.questions.adapters.section import arm_differences
from analysis.regression import second
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.headline import Headline


def headlines(study: Study) -> list[Headline]:
    """Return every arm less its reference, by data set and side of the tasks."""
    table = arm_differences(study)
    found = []
    for row in table.to_dict("records") if len(table) else []:
        rows = study.main[study.main["dataset"].astype(str) == str(row["dataset"])]
        if row["side"] != "both":
            rows = rows[rows["side"].astype(str) == str(row["side"])]
        arms = (str(row["arm"]), str(row["against"]))
        found.append(
            Headline(
                label=f"{arms[0]} − {arms[1]}",
                group=f"{row['dataset']}: {words.SIDES[str(row['side'])]}",
                question="adapters",
                estimate=float(row["estimate"]),
                low=float(row["low"]),
                high=float(row["high"]),
                unit="points",
                verdict=str(row["verdict"]),
                p=float(row["p_holm"]),
                mde=float(row["mde"]),
                second=second.of_study(study, rows, "arm", arms),
            )
        )
    return found
