"""Numbers and levels in words, the same in every sentence, table and figure of a report."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.engine.ties import settled
from analysis.inference.estimates import Estimate

TASK_TYPES = {
    "mc": "multiple choice",
    "short": "short generation",
    "long": "long generation",
}
DATASET_TYPES = {"short": "short completions", "long": "long completions", "text": "plain text"}
SIDES = {"target": "target tasks", "source": "source tasks", "both": "tasks"}
HEADS = {
    "mode": "masking", "task_group": "tasks", "dataset_type": "data", "plw": "PLW", "wp": "w_p",
    "estimate": "estimate", "low": "95 % low", "high": "95 % high", "p": "p", "p_holm": "p (Holm)",
    "mde": "MDE", "df": "df", "se": "s.e.", "n": "n",
}  # fmt: skip


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 run, 2 runs, 3 aliases."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"


def counted(labels: Sequence[str]) -> str:
    """Return a label that all of some panels have, else every label with its number of panels."""
    counts = Counter(labels).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return ", ".join(f"{label} in {number} of {len(labels)} panels" for label, number in counts)


def group_order(group: str) -> tuple[int, str]:
    """Return where a task group stands: multiple choice, short, long generation, others."""
    kind, _, side = group.partition(" ")
    kinds = list(TASK_TYPES)
    return (kinds.index(kind) if kind in kinds else len(kinds), side)


def group_text(group: str) -> str:
    """Return a task group in words: "mc source" is "multiple choice (source)"."""
    kind, _, side = group.partition(" ")
    name = TASK_TYPES.get(kind, kind)
    return f"{name} ({side})" if side else name


def data_text(kind: str) -> str:
    """Return a data-set type in words; other names stay as they are."""
    return DATASET_TYPES.get(kind, kind)


def panel_words(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with task groups and data-set types in words."""
    maps = {"task_group": group_text, "dataset_type": data_text}
    return frame.assign(**{n: frame[n].map(text) for n, text in maps.items() if n in frame})


def signed(value: float, digits: int = 1) -> str:
    """Return a difference with its sign, a real minus included."""
    text = f"{settled(value):+.{digits}f}"
    if float(text) == 0:
        text = text[1:]
    return text.replace("-", "−")


def plain(value: float, digits: int = 1) -> str:
    """Return a number without a plus, with a real minus."""
    return signed(value, digits).removeprefix("+")


def span(low: float, high: float) -> str:
    """Return a range in words, or one number where both ends read the same."""
    ends = plain(low), plain(high)
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def interval(low: float, high: float) -> str:
    """Return a 95 % interval in words."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    return f"95 % interval {plain(low)} to {plain(high)}"


def estimate_text(found: Estimate) -> str:
    """Return an estimate in points with its interval."""
    return f"{signed(found.estimate)} points ({interval(found.low, found.high)})"


def plw_text(plw: float) -> str:
    """Return a PLW to two digits."""
    return f"{plw:.2g}"


def term_text(name: str) -> str:
    """Return a coefficient's name without the marks of the formula machinery."""
    text = re.sub(r"task_group\[(?:T\.)?([^\]]*)\]", lambda m: group_text(m[1]), name)
    text = re.sub(r"dataset_type\[(?:T\.)?([^\]]*)\]", lambda m: data_text(m[1]), text)
    text = re.sub(r"\[(?:T\.)?([^\]]*)\]", r" \1", text)
    text = re.sub(r"I\((\w+) \*\* 2\)", r"\1²", text)
    text = re.sub(r":curved\b|\bcurved:", "", text)
    text = re.sub(r"\b(mode|task|dataset|adapter) ", "", text)
    text = text.replace("log2_rank", "log₂ rank")
    return text.replace(":", " · ")


def varying(rows: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """Return what varies of some columns, in words: "adapter, rank and seed"; "" if nothing does.

    Args:
        rows: where they may vary.
        columns: the columns, each with its name in a sentence.
    """
    names = [word for n, word in columns.items() if n in rows and rows[n].nunique() > 1]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def full_trains(rows: pd.DataFrame) -> str:
    """Return what full fine-tuning left frozen, as a sentence; "" where it left nothing."""
    if not {"adapter", "embeddings"} <= set(rows):
        return ""
    full = rows[rows["adapter"].astype(str) == "full"]
    if not (full["embeddings"].astype(str) == "frozen").any():
        return ""
    return (
        " Full fine-tuning (full) kept embedding and head frozen, as all adapters do; "
        "embeddings=trained trains them."
    )
