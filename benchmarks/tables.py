"""Writes the measured tables of benchmarks/*.csv into docs/statistics.md, between their markers.

    python benchmarks/tables.py

A table stands between <!-- table NAME --> and <!-- end -->; a test holds the page to the files.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "statistics.md"
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(table: pd.DataFrame) -> str:
    """Return a table in Markdown; what is missing is left empty."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.fillna("").to_numpy().tolist()]
    cells = [[str(value).replace("|", r"\|") for value in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def seconds(value: float) -> str:
    """Return a time in words; nothing for one that was not measured."""
    if pd.isna(value):
        return ""
    return f"{value:.1f} s"


def _short(value: float) -> str:
    return f"{1e3 * value:.1f} ms" if value < 1 else seconds(value)


def speed() -> str:
    """Return programs by models: processor seconds, wall seconds behind them."""
    found = pd.read_csv(HERE / "mixed_models.csv")
    both = [
        "" if pd.isna(cpu) else f"{_short(cpu)} ({_short(wall)})"
        for cpu, wall in zip(found["cpu"], found["wall"], strict=True)
    ]
    wide = found.assign(time=both).pivot(index="program", columns="model", values="time")
    order = [list(dict.fromkeys(found[name])) for name in ("program", "model")]
    return markdown(wide.loc[order[0], order[1]].reset_index())


def growth() -> str:
    """Return our processor times by rows and levels."""
    found = pd.read_csv(HERE / "mixed_models_growth.csv")
    return markdown(
        pd.DataFrame(
            {
                "rows": found["rows"].map("{:,}".format),
                "runs x tasks": [
                    f"{r:,} x {t:,}" for r, t in zip(found["runs"], found["tasks"], strict=True)
                ],
                "numbers alone": found["numbers_cpu"].map(_short),
                "`fit_mixed`": found["fit_mixed_cpu"].map(_short),
            }
        )
    )


def refits() -> str:
    """Return the bootstrap's times."""
    found = pd.read_csv(HERE / "mixed_models_refits.csv")
    times = {"processor": found["cpu"].map(_short), "wall": found["wall"].map(_short)}
    return markdown(found[["program", "refits"]].assign(**times))


def dispersion() -> str:
    """Return the times of unequal residual variances, a column for every program."""
    found = pd.read_csv(HERE / "mixed_models_dispersion.csv")
    times = [f"{_short(c)} ({_short(w)})" for c, w in zip(found["cpu"], found["wall"], strict=True)]
    wide = found.assign(time=times).pivot(index="model", columns="program", values="time")
    order = [list(dict.fromkeys(found[name])) for name in ("model", "program")]
    return markdown(wide.loc[order[0], order[1]].reset_index())


def coverage() -> str:
    """Return the rates in percent with their Monte-Carlo errors, a column for every quantity."""
    found = pd.read_csv(HERE / "coverage.csv")
    rate = [
        f"{100 * r:.2f} ± {100 * e:.2f}" for r, e in zip(found["rate"], found["error"], strict=True)
    ]
    keys = ["shape", "model", "df", "grids"]
    wide = found.assign(rate=rate).pivot(index=keys, columns="quantity", values="rate")
    order = found[keys].drop_duplicates()
    wide = wide.reindex(pd.MultiIndex.from_frame(order))
    return markdown(wide[["wp^2", "gain", "location", "type I"]].reset_index())


def general() -> str:
    """Return the times of generalised models, a column for every program."""
    found = pd.read_csv(HERE / "glmm_speed.csv")
    times = [f"{_short(c)} ({_short(w)})" for c, w in zip(found["cpu"], found["wall"], strict=True)]
    wide = found.assign(time=times).pivot(index="model", columns="program", values="time")
    own = found[found["program"] == "ablate"].set_index("model")
    wide = wide.reindex(list(own.index))[["ablate", "glmmTMB", "lme4"]].fillna("")
    wide["ablate, peak MiB"] = own["peak_mib"].round().astype(int)
    return markdown(wide.reset_index())


def winners() -> str:
    """Return the winner's coverage (percent) and its intervals' lengths, spans over the truths."""
    found = pd.read_csv(HERE / "winner_coverage.csv").dropna(subset="seeds")
    by = found.astype({"seeds": int, "df": int}).groupby(["cells", "seeds", "df"])
    scale = pd.Series({"known": 100, "new": 100, "above": 100, "length_known": 1, "length": 1})
    low, high = by[list(scale.index)].min() * scale, by[list(scale.index)].max() * scale
    spans = low.map("{:.1f}".format) + " to " + high.map("{:.1f}".format)
    heads = ["by the normal", "by Student's t", "estimate too high", "length, normal", "length, t"]
    return markdown(spans.set_axis(heads, axis=1).reset_index())


def labellings() -> str:
    """Return rates of random labels by panel, in percent, of the quick and the default study."""
    rates = {}
    for study, name in (("quick", "labellings"), ("default", "labellings_default")):
        found = pd.read_csv(HERE / f"{name}.csv")
        panels = found[["dataset", "task_group"]].to_numpy()
        index = [", ".join(dict.fromkeys(panel)) for panel in panels]
        shown = [_percent(*row) for row in found[["rate", "low", "high"]].to_numpy()]
        rates[f"{study} study"] = pd.Series(shown, index)
    return markdown(pd.DataFrame(rates).rename_axis("panel").reset_index())


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def whole_studies() -> str:
    """Return what the page says of simulated studies, a case a row, in percent and points."""
    found = pd.read_csv(HERE / "whole_studies.csv")
    rows = [_case(name, own.set_index(["what", "where"]))
            for name, own in found.groupby("case", sort=False)]  # fmt: skip
    return markdown(pd.DataFrame(rows))


def _case(name: str, own: pd.DataFrame) -> dict[str, object]:
    def share(what: str, where: str) -> str:
        known = (what, where) in own.index
        return f"{100 * own.loc[(what, where), 'value']:.1f}" if known else ""

    row: dict[str, object] = {"truth": name}
    gain = "coverage of PLW 1 - PLW 0"
    row["false"] = share("false headline of either", "study")
    row["false before"] = share("before: false headline of the weight", "study")
    for mark, what in (("", gain), (" before", f"before: {gain}")):
        parts = own.loc[[what], "value"] if what in own.index.get_level_values(0) else None
        row[f"coverage{mark}"] = "" if parts is None else (
            f"{share(what, 'all panels')} ({100 * parts.min():.0f} to {100 * parts.max():.0f})"
        )  # fmt: skip
    for mark, start in (("", ""), (" before", "before: ")):
        what = f"{start}width of PLW 1 - PLW 0"
        known = (what, "all panels") in own.index
        row[f"width{mark}"] = f"{own.loc[(what, 'all panels'), 'value']:.1f}" if known else ""
        row[f"seen{mark}"] = share(f"{start}seen by itself", "all panels")
    row["best weight inside claimed"] = share("best weight inside claimed", "all panels")
    row["its coverage"] = share("coverage of the best weight", "all panels")
    row["winner's coverage"] = share("coverage of the winner, corrected", "all panels")
    return row


def external() -> str:
    """Return the type I error of proposed models by shape of the table, in percent."""
    found = pd.read_csv(HERE / "external_tables.csv")
    rates = [f"{100 * r:.1f} ± {100 * e:.1f}" for r, e in found[["rate", "error"]].to_numpy()]
    return markdown(pd.DataFrame({
        "table": found["shape"], "predictor": found["interest"], "tables": found["tables"],
        "before": found["shape"].map({"sleepstudy": "31", "lm-eval": "39", "cake": "17"}),
        "now": rates, "proposed now": "`" + found["proposed"] + "`",
    }))  # fmt: skip


def paired() -> str:
    """Return the coverage of paired differences: a row per runs, items and runs' spread."""
    found = pd.read_csv(HERE / "paired_coverage.csv")
    kinds = {0.5: "half right", 0.9: "90 % right", 0.98: "98 % right", 0.0: "continuous"}
    both = [f"{100 * o:.1f} / {100 * u:.1f}" for o, u in found[["ours", "unpaired"]].to_numpy()]
    table = found.assign(kind=found["right"].map(kinds), both=both)
    design = ["seeds", "items", "run"]
    wide = table.pivot(index=design, columns="kind", values="both")[list(kinds.values())]
    heads = {"seeds": "runs a side", "run": "SD of runs"}
    return markdown(wide.reset_index().rename(columns=heads).astype(object))


TABLES: dict[str, Callable[[], str]] = {
    "external": external,
    "labellings": labellings,
    "whole_studies": whole_studies,
    "speed": speed,
    "growth": growth,
    "refits": refits,
    "dispersion": dispersion,
    "coverage": coverage,
    "general": general,
    "winners": winners,
    "paired": paired,
}


def rewritten(text: str) -> str:
    """Return a page with its measured tables as the files have them."""
    return BLOCK.sub(lambda m: m[1] + TABLES[m[2]]() + m[3] if m[2] in TABLES else m[0], text)


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
