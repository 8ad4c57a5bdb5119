"""Columns: which format a data set has, and which of its columns is which of ours."""

from ablate.config.schema import Dataset
from ablate.errors import UserError, nearest, unknown

FORMATS = {  # the columns that a format needs, and those it may have
    "messages": (("messages",), ("tools",)),
    "alpaca": (("instruction", "output"), ("input", "system", "history")),
    "prompt_completion": (("prompt", "completion"), ("system", "tools")),
    "text": (("text",), ()),
}
WEIGHT = "weight"  # of a row, in a column that the data set names: no column's name means it

# Usual names of columns where ours are not there, the likelier first.
CONVERSATIONS = ("conversations", "conversation", "dialogue", "dialog", "chat")
REQUESTS = ("instruction", "question", "query", "prompt", "problem")
ANSWERS = ("output", "answer", "response", "completion", "solution")
CONTEXTS = ("input", "context")


def named(dataset: Dataset, columns: set[str]) -> tuple[str, dict[str, str]]:
    """Return the format of a data set with these columns, and their names by ours.

    Raises:
        UserError: there is no such format, or a column is missing.
    """
    name, known = (
        _detect(dataset, columns)
        if dataset.format == "auto"
        else (dataset.format, dict(dataset.columns))
    )
    needed, optional = FORMATS[name]
    optional = (*optional, *(w for w in [WEIGHT] if w in dataset.columns))
    for ours in dataset.columns:
        if ours not in needed + optional:
            raise unknown("dataset.columns", ours, (*needed, *optional, WEIGHT))
    theirs = {ours: known.get(ours, ours) for ours in needed + optional}
    for ours in (*needed, *known):
        if theirs[ours] not in columns:
            raise _missing(dataset, theirs[ours], columns, name)
    return name, theirs


def _detect(dataset: Dataset, columns: set[str]) -> tuple[str, dict[str, str]]:
    """Return the first format all of whose needed columns are there, under our or usual names."""
    given = dict(dataset.columns)
    for name, (needed, _) in FORMATS.items():
        if all(given.get(ours, ours) in columns for ours in needed):
            return name, given
    decided = any(ours in needed for ours in given for needed, _ in FORMATS.values())
    usual = [] if decided else _by_usual_names(columns)
    if len(usual) == 1:
        name, found = usual[0]
        return name, found | given
    if usual:
        shown = " or ".join(" and ".join(names.values()) for _, names in usual[:3])
        raise UserError(
            f"dataset.path={dataset.path}: its columns may be {shown}; name yours with "
            "dataset.columns.instruction=COLUMN dataset.columns.output=COLUMN"
        )
    if not decided and not any(columns & set(needed) for needed, _ in FORMATS.values()):
        have = ", ".join(sorted(columns)[:12])
        raise UserError(
            f"dataset.path={dataset.path}: its columns {have} are none of instruction and output, "
            "prompt and completion, messages, text; name yours with "
            "dataset.columns.instruction=COLUMN dataset.columns.output=COLUMN"
        )
    best = max(FORMATS, key=lambda n: len(columns & set(FORMATS[n][0])))
    missing = [c for c in FORMATS[best][0] if dataset.columns.get(c, c) not in columns]
    raise _missing(dataset, dataset.columns.get(missing[0], missing[0]), columns, best)


def _by_usual_names(columns: set[str]) -> list[tuple[str, dict[str, str]]]:
    """Return the formats, with the names of their columns, that usual names stand for."""
    talks = [c for c in CONVERSATIONS if c in columns]
    if talks:
        return [("messages", {"messages": talk}) for talk in talks]
    context = next((c for c in CONTEXTS if c in columns), None)
    more = {"input": context} if context else {}
    return [
        ("alpaca", {"instruction": asked, "output": answer, **more})
        for asked in REQUESTS
        for answer in ANSWERS
        if {asked, answer} <= columns
    ]


def _missing(dataset: Dataset, column: str, columns: set[str], name: str) -> UserError:
    have = ", ".join(sorted(columns)[:12])
    return UserError(
        f"dataset.path={dataset.path}: no column {column!r}, which format {name} needs; it has "
        f"{have}. Name yours with dataset.columns.{_name_of(dataset, column)}=COLUMN."
        f"{nearest(column, columns)}"
    )


def _name_of(dataset: Dataset, column: str) -> str:
    """Return our name for the column that the data set calls `column`."""
    return next((ours for ours, theirs in dataset.columns.items() if theirs == column), column)
