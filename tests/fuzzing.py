"""What is thrown at the program at random: settings, data files, tables and results, half right.

Everything is drawn by hypothesis from a right one and a few wrong ones, so that most draws come
past the first check.
"""

import json
import string

from hypothesis import strategies as st

from tests.settings import settings

NUMBERS = st.one_of(
    st.integers(),
    st.integers(-3, 300),
    st.floats(),
    st.sampled_from([10**30, -(10**400), 5e-324, 1e308, 2**31, 2**63, True, False]),
)
# Characters that the grammars of Hydra, OmegaConf, YAML, Jinja and a shell give a meaning to.
ODD = "[]{}()=,:;.$\\'\"@~+*?!#%&|<>/ \t\n\0\ud800é語😀" + string.digits + "aeTinf_-"
TEXTS = st.one_of(
    st.text(ODD, max_size=12),
    st.text(max_size=12),
    st.sampled_from(
        ["", "null", "nan", "inf", "true", "???", "${plw}", "${nowhere}", "${oc.env:HOME}", "1e400",
         "choice(1,2)", "range(0,3)", "glob(*)", "interval(0,1)", "sort(2,1)", "[1,2]", "{a:1}",
         "9" * 5000, "[" * 60, "x" * 300, "/dev/null", "..", "~", "%s", "{}"]
    ),
)  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
KEYS = [path for path, _ in settings()]
GROUPS = ["masking", "adapter", "init", "optimizer", "placement", "regulariser", "train", "model"]
COMMAND = ["scale", "single", "report", "cell_minutes", "stop_after", "gpu_gb", "rates", "study"]


def spelled(value: object) -> str:
    """Return a value in a grammar that Hydra reads in part: lists and tables, else as it is."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{spelled(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(spelled, value)) + "]"
    return "null" if value is None else _text(value)


def _text(value: object) -> str:
    return "1" + "0" * 400 if isinstance(value, int) and abs(value) > 1e300 else str(value)


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """A line or two of `key=value`, whose keys are there and whose values are anything."""
    lines = []
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from([*KEYS, *GROUPS, *COMMAND]) | TEXTS)
        mark = draw(st.sampled_from(["", "", "", "+", "++", "~"]))
        value = spelled(draw(JSON))
        lines.append(f"{mark}{key}={value}")
    return lines


ROW = {"instruction": "Say it.", "input": "", "output": "It is said."}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Say it."},
    {"role": "assistant", "content": "Said.", "reasoning_content": "Hm.", "weight": 0.5},
    {"role": "user", "content": [{"type": "text", "text": "Call it."}]},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
    {"role": "tool", "content": "1", "tool_call_id": "a"},
    {"role": "assistant", "content": "One.", "train": True},
]  # fmt: skip
TOOL = {"type": "function", "function": {"name": "f", "description": "d",
        "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}}  # fmt: skip
CHAT = {"messages": MESSAGES, "tools": [TOOL]}


@st.composite
def changed(draw: st.DrawFn, value: object, changes: int = 3) -> object:
    """A copy of nested `value` in which a few places hold something else, or nothing."""
    for _ in range(draw(st.integers(0, changes))):
        value = _changed_once(draw, value)
    return value


def _changed_once(draw: st.DrawFn, value: object) -> object:
    whole = not isinstance(value, dict | list) or not value
    if whole or draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    if isinstance(value, dict):
        key = draw(st.sampled_from(sorted(value, key=str)))
        rest = {k: v for k, v in value.items() if k != key}
        how = draw(st.integers(0, 5))
        if how == 0:
            return rest
        if how == 1:
            return rest | {draw(TEXTS): value[key]}
        return {**value, key: _changed_once(draw, value[key])}
    assert isinstance(value, list)
    place = draw(st.integers(0, len(value) - 1))
    how = draw(st.integers(0, 5))
    if how == 0:
        return value[:place] + value[place + 1 :]
    if how == 1:
        return [*value, value[place]]
    return [*value[:place], _changed_once(draw, value[place]), *value[place + 1 :]]


@st.composite
def torn(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes of a file, of which some are changed, lost, doubled or put before it."""
    how = draw(st.integers(0, 9))
    place = draw(st.integers(0, len(content)))
    if how == 0:
        return content[:place]
    if how == 1:
        return content[:place] + draw(st.binary(max_size=6)) + content[place + 1 :]
    if how == 2:
        return content[:place] + content[max(0, place - 30) :]
    if how == 3:
        return draw(st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\r\n"])) + content
    return content


@st.composite
def json_rows(draw: st.DrawFn, row: dict) -> bytes:
    """A file of JSON lines, or a JSON list, of which one row is changed."""
    rows = [row] * draw(st.integers(0, 12)) + [draw(changed(row))]
    lines = [json.dumps(each) for each in draw(st.permutations(rows))]
    text = "\n".join(lines) if draw(st.booleans()) else f"[{','.join(lines)}]"
    return draw(torn(text.encode()))


def _field(value: object) -> str:
    text = _text(value)
    quoted = any(mark in text for mark in ',"\n\r')
    return '"' + text.replace('"', '""') + '"' if quoted else text


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A CSV table with a column of scores, in which names, kinds and numbers of values vary."""
    rows = draw(st.sampled_from([0, 1, 2, 5, 24]))
    names = draw(
        st.lists(st.sampled_from(["a", "b", "run", "task", "plw", "seed", "a b", "x:y"]) | TEXTS,
                 max_size=4)
    )  # fmt: skip
    kinds = [
        st.sampled_from(["x", "y"]),
        st.just("x"),
        st.integers(0, 3),
        st.floats(0, 1),
        NUMBERS,
        SCALARS,
    ]
    columns = {name: draw(st.sampled_from(kinds)) for name in names}
    score = draw(
        st.sampled_from(
            [st.floats(0, 1), st.floats(-5, 5), st.just(1.0), st.sampled_from([0, 1]), NUMBERS]
        )
    )
    lines = [[*columns, "score"]]
    lines += [[draw(kind) for kind in (*columns.values(), score)] for _ in range(rows)]
    text = "\n".join(",".join(map(_field, line)) for line in lines)
    return draw(torn(text.encode(errors="surrogatepass")))
