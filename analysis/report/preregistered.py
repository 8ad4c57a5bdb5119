"""What was settled before the data: the frozen plan, and whether the analysis kept to it."""

import json
import time
from pathlib import Path

from analysis.design.frozen import FILE, Frozen, held, read_frozen
from analysis.errors import AnalysisError
from analysis.report.page import Item, Listing, Section, Text
from analysis.report.study import Study


def section(study: Study) -> Section | None:
    """Return the section; None where no plan lies beside the results."""
    if study.folder is None or not (study.folder / FILE).is_file():
        return None
    try:
        plan = read_frozen(study.folder / FILE)
    except AnalysisError as error:
        return _page(Text("Nothing here is confirmatory."), (Item(f"{error}.", "broken", "warn"),))
    trained = study.frame[~study.frame["is_base"]]
    runs = sorted(trained["run"].astype(str).unique())
    found = held(plan, formula=study.fit.formula, runs=runs, finished=_finished(study.folder, runs))
    kept = (
        "The main model was fitted as frozen, to the runs as planned: its tests are confirmatory."
    )
    lines = [Item(kept, "as frozen", "clear")] if found.confirmatory else []
    lines += [Item(words, "deviates", "warn") for words in found.words]
    return _page(_told(plan), (*lines, Item("All other sections are exploratory.")))


def _page(head: Text, lines: tuple[Item, ...]) -> Section:
    return Section("frozen", "Planned before the data", (head, Listing(lines)))


def _told(plan: Frozen) -> Text:
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(plan.written))
    return Text(
        f"Frozen on {when}, SHA-256 {plan.sha256[:16]}: {plan.formula}; {len(plan.runs)} runs over "
        f"{len(plan.seeds)} seeds; smallest effect of interest {plan.margin:g} points."
    )


def _finished(folder: Path, runs: list[str]) -> dict[str, float]:
    """Return when the runs ended, as their records say."""
    found: dict[str, float] = {}
    for run in runs:
        file = folder / "cells" / run / "record.json"
        if file.is_file():
            record = json.loads(file.read_text(encoding="utf-8"))
            ended = record.get("provenance", {}).get("finished")
            found |= {} if ended is None else {run: float(ended)}
    return found
