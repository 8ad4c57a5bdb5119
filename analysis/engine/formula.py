"""Formulas: lme4's random-effects syntax, split off before formulaic sees the fixed part.

    score ~ poly(wp, 2) * dataset_type + masking + (1 | task) + (1 + wp | run)

A formula holds names, numbers, + - * / : ^ ( ) | and the functions of `FUNCTIONS`, nothing else:
formulaic evaluates Python, so every token is checked here first. A name with other characters is
written in `backticks`. `(1 + x || g)` is `(1 | g) + (0 + x | g)`, `(1 | a/b)` is
`(1 | a) + (1 | a:b)`, and several bars over one group share its grouping factor. `offset(x)` adds
x to the linear predictor with a coefficient of one.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import formulaic
import numpy as np
import pandas as pd
from formulaic.errors import DataMismatchWarning, FormulaicError
from formulaic.utils.variables import Variable
from scipy.linalg import block_diag
from scipy.special import logit

from analysis.engine.layout import Factor
from analysis.engine.linalg import Array, Index, Mask, independent_columns
from analysis.engine.summary import brief
from analysis.errors import AnalysisError, listed, nearest

FUNCTIONS = ("poly", "I", "C", "log", "log2", "log10", "exp", "sqrt", "logit", "center", "scale")
OFFSET = "offset"
_CONTEXT = {"sqrt": np.sqrt, "logit": logit}
MOST_CELLS = 10_000  # of an interaction, up to which the empty ones are listed
LARGEST = 1e90  # fourth powers of a ratio of two columns are numbers still
RESERVED = ("Intercept", "1", ".", "~", "|")  # to formulaic, in backticks or not
KEYWORDS = ("degree", "raw", "True", "False")  # of poly
_TOKEN = re.compile(
    r"\s*(?:(?P<name>`[^`]+`|[A-Za-z_]\w*)|(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?)"
    r"|(?P<op>\*\*|\|\||[~+\-*/:^(),|=])|(?P<other>\S))"
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One random-effects term: what varies, over which group, correlated or not."""

    expression: str
    group: tuple[str, ...]  # the columns whose combinations are the levels
    correlated: bool


@dataclass(frozen=True, slots=True)
class Parsed:
    """A formula in parts."""

    response: str
    fixed: str
    bars: tuple[Bar, ...]
    columns: tuple[str, ...]  # every column that is named
    offsets: tuple[str, ...] = ()  # what stands in offset( )


@brief
@dataclass(frozen=True, slots=True)
class Dispersion:
    """What the logarithm of the residual's standard deviation is linear in."""

    formula: str
    names: tuple[str, ...]
    columns_NC: Array  # independent ones, whose span holds the constant
    index_N: Index  # the level of every row: what its columns' values are together
    levels: tuple[str, ...]


@brief
@dataclass(frozen=True, slots=True)
class DesignMatrices:
    """The matrices of a formula on a table, rows with missing values left out."""

    parsed: Parsed
    spec: formulaic.ModelSpec  # rebuilds the fixed part for other rows, in the same coding
    names: tuple[str, ...]
    X_NB: Array
    y_N: Array
    factors: tuple[Factor, ...]
    weights_N: Array | None
    rows: "pd.Index[Any]"
    dropped: int
    offset_N: Array | None = None
    dispersion: Dispersion | None = None
    empty: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # see `_empty_cells`

    @property
    def needed(self) -> list[str]:
        """The columns that the fixed part is computed from."""
        # formulaic's `required_variables` cuts a name in backticks at its first dot, and so does
        # what it says of a variable's source.
        there = {str(v) for v in self.spec.variables if Variable.Role.VALUE in v.roles}
        return [name for name in self.parsed.columns if name in there]

    def beside(self, column: str) -> list[str]:
        """Return the columns of the fixed part that stand in no term together with `column`."""
        terms = [{str(v) for v in own} for own in self.spec.term_variables.values()]
        met = set().union(*(own for own in terms if column in own))
        return [name for name in self.needed if name != column and name not in met]

    @property
    def root_N(self) -> Array:
        """The square roots of the rows' weights; ones without weights."""
        return np.ones(len(self.y_N)) if self.weights_N is None else np.sqrt(self.weights_N)

    @property
    def response_N(self) -> Array:
        """The score less its offset, which is what a linear model is fitted to."""
        return self.y_N if self.offset_N is None else self.y_N - self.offset_N


def parse(formula: str, columns: Iterable[str]) -> Parsed:
    """Return the parts of `formula`; every fault of it is one `AnalysisError`.

    Args:
        formula: as in the module's docstring.
        columns: the table's columns, against which names are checked.
    """
    said, tokens, used = _read("formula", formula, columns)
    tilde = _tilde(said, tokens)
    left, right = tokens[:tilde], tokens[tilde + 1 :]
    if not left or not right:
        raise AnalysisError(f"{said}: nothing stands on one side of the ~")
    if "|" in left or "||" in left:
        raise AnalysisError(f"{said}: a | belongs to the right of the ~")
    fixed, bars, offsets = _split(said, right)
    fixed = list(_literal(fixed))
    texts = (_text(left), _text(fixed), *(bar.expression for bar in bars))
    if any(re.search(rf"(?<![\w`]){OFFSET} ?\(", text) for text in texts):
        raise AnalysisError(
            f"{said}: offset(x) is a term of its own, joined by +, as in score ~ wp + offset(x)"
        )
    return Parsed(_text(left), _text(fixed) or "1", tuple(bars), used, tuple(offsets))


def parse_dispersion(text: str, columns: Iterable[str]) -> Parsed:
    """Return the parts of a one-sided formula of fixed terms; its response is empty.

    Args:
        text: as in "~ panel".
        columns: the table's columns, against which names are checked.
    """
    if not isinstance(text, str):
        raise AnalysisError(f"dispersion={text}: must be a formula as text, such as '~ panel'")
    said, tokens, used = _read("dispersion", text, columns)
    fixed, bars, offsets = _split(said, tokens[1:]) if len(tokens) > 1 else ([], [], [])
    if tokens[:1] != ["~"] or not fixed or "~" in fixed or bars or offsets:
        raise AnalysisError(f"{said}: must be ~ and terms without bars or offsets, as in ~ panel")
    return Parsed("", _text(list(_literal(fixed))), (), used)


def response_columns(formula: str, columns: Iterable[str]) -> list[str]:
    """Return the columns that the left side of a formula is computed from, as far as known."""
    said = f"formula={formula}"
    tokens, known = list(_tokens(said, formula)), {str(c) for c in columns}
    left = tokens[: _tilde(said, tokens)]
    named = [t.strip("`") for t, after in zip(left, [*left[1:], ""], strict=False) if after != "("]
    return [name for name in named if name in known]


def _read(role: str, text: str, columns: Iterable[str]) -> tuple[str, list[str], tuple[str, ...]]:
    """Return how a message about this formula begins, its tokens, and the columns it names."""
    said = f"{role}={text}"
    tokens = list(_tokens(said, text))
    return said, tokens, tuple(dict.fromkeys(_columns(said, tokens, [str(c) for c in columns])))


def _tilde(said: str, tokens: list[str]) -> int:
    if tokens.count("~") != 1:
        raise AnalysisError(f"{said}: must have one ~ between the score and its terms")
    return tokens.index("~")


def _tokens(said: str, formula: str) -> Iterator[str]:
    for match in _TOKEN.finditer(formula.strip()):
        if match["other"]:
            raise AnalysisError(
                f"{said}: {match['other']!r} is not allowed; a formula holds column "
                f"names, numbers, + - * / : ^ ( ) | and the functions {listed(FUNCTIONS)}; other "
                f"names go in `backticks`"
            )
        yield "**" if match[0].strip() == "^" else match[0].strip()


def _columns(said: str, tokens: list[str], known: list[str]) -> Iterator[str]:
    """Yield the columns named; an unknown name or function is an error with the nearest one."""
    for token, after in zip(tokens, [*tokens[1:], ""], strict=False):
        if not re.match(r"[A-Za-z_`]", token):
            continue
        name = token.strip("`")
        if after == "(" and not token.startswith("`"):
            if token not in (*FUNCTIONS, OFFSET):
                raise AnalysisError(
                    f"{said}: no function {token!r}; there are "
                    f"{listed(FUNCTIONS)}.{nearest(token, (*FUNCTIONS, OFFSET))}"
                )
        elif name in known:
            yield name
        elif token not in KEYWORDS:
            raise AnalysisError(
                f"{said}: no column {name!r}; the table has {listed(known)}.{nearest(name, known)}"
            )


def _split(said: str, tokens: list[str]) -> tuple[list[str], list[Bar], list[str]]:
    """Return the tokens of the fixed part, the random-effects terms, and the offsets."""
    fixed: list[str] = []
    bars: list[Bar] = []
    offsets: list[str] = []
    for sign, term in _terms(said, tokens):
        if term[:2] == [OFFSET, "("] and _closes(term[1:]) and sign != ["-"]:
            offsets.append(_text(term[2:-1]))
        elif "|" not in term and "||" not in term:
            fixed += [*sign, *term]
        elif term[0] == "(" and term[-1] == ")" and sign != ["-"]:
            bars += _bars(said, term[1:-1])
        else:
            raise AnalysisError(
                f"{said}: write a random term in brackets and join it by +, "
                f"as in score ~ wp + (1 | task)"
            )
    return fixed[1:] if fixed[:1] == ["+"] else fixed, bars, offsets


def _literal(tokens: list[str]) -> Iterator[str]:
    """Yield the tokens, names that formulaic would not take for columns as I(name)."""
    inside = 0  # brackets that are open since a function's name
    for before, token in zip(["", *tokens], tokens, strict=False):
        if token == "(" and (inside or before in FUNCTIONS):
            inside += 1
        elif token == ")" and inside:
            inside -= 1
        # A bracket may make the name that of a level's coefficient, arm[T.b], of which one is lost.
        odd = token.strip("`") in RESERVED or "[" in token
        if not inside and re.match(r"[A-Za-z_`]", token) and odd:
            yield from ("I", "(", token, ")")
        else:
            yield token


def _closes(tokens: list[str]) -> bool:
    """Return whether the first bracket closes with the last token."""
    depth = np.cumsum([(token == "(") - (token == ")") for token in tokens])
    return len(tokens) > 2 and bool((depth[:-1] > 0).all()) and not depth[-1]


def _terms(said: str, tokens: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the terms that + and - join outside brackets, each with its sign."""
    sign: list[str] = []
    term: list[str] = []
    depth = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        if depth < 0:
            raise AnalysisError(f"{said}: a bracket closes that was never opened")
        if depth == 0 and token in "+-" and (term or sign):
            yield sign, term
            sign, term = [token], []
        elif depth == 0 and token in "+-":
            sign = [token]
        else:
            term.append(token)
    if depth:
        raise AnalysisError(f"{said}: a bracket is not closed")
    yield sign, term


def _bars(said: str, tokens: list[str]) -> Iterator[Bar]:
    """Yield the random terms of what stands inside one pair of brackets."""
    marks = [i for i, token in enumerate(tokens) if token in ("|", "||")]
    left, right = tokens[: marks[0]], tokens[marks[0] + 1 :]
    names, joints = right[::2], right[1::2]
    simple = all(re.match(r"[A-Za-z_`]", n) for n in names) and len(right) % 2 == 1
    if len(marks) > 1 or not left or not simple or not set(joints) <= {":", "/"}:
        raise AnalysisError(
            f"{said}: ({_text(tokens)}) is no random term; write (1 | g), (1 + x | g), "
            f"(0 + x | g) or (1 + x || g), where g is a column, a:b or a/b"
        )
    left = list(_literal(left))
    columns = tuple(name.strip("`") for name in names)
    correlated = tokens[marks[0]] == "|"
    # a/b is a and a:b: every prefix that ends before a slash is a group of its own.
    ends = [i + 1 for i, joint in enumerate(joints) if joint == "/"] + [len(columns)]
    yield from (Bar(_text(left), columns[:end], correlated) for end in ends)


def _text(tokens: list[str]) -> str:
    """Return the tokens as formulaic and a reader like them: no space around brackets.

    Tokens themselves stay as they are: a name in backticks may hold any brackets and spaces.
    """
    text = ""
    for before, token in zip(["", *tokens], tokens, strict=False):
        joined = before in ("", "(") or token in (")", ",")
        called = token == "(" and before in FUNCTIONS
        text += token if joined or called else f" {token}"
    return text


def design(
    parsed: Parsed,
    frame: pd.DataFrame,
    *,
    weights: str | None = None,
    counted: bool = False,
    dispersion: str | None = None,
) -> DesignMatrices:
    """Return the matrices of a parsed formula on the complete rows of `frame`.

    Args:
        parsed: the formula.
        frame: the table.
        weights: a column of it.
        counted: whether a row is several trials, so that it may have a random effect of its own.
        dispersion: a one-sided formula.
    """
    spread = None
    if dispersion is not None:
        spread = parse_dispersion(dispersion, frame.columns)
        if set(response_columns(f"{parsed.response} ~ 1", frame.columns)) & set(spread.columns):
            raise AnalysisError(f"dispersion={dispersion}: the score cannot stand in it")
    if weights is not None and weights not in frame:
        raise AnalysisError(f"weights={weights}: no such column.{nearest(weights, frame)}")
    extra = ([weights] if weights else []) + list(spread.columns if spread else ())
    used = frame[list(dict.fromkeys([*parsed.columns, *extra]))]
    data = used[used.notna().all(axis=1)]
    if not len(data):
        raise AnalysisError(f"no row has all of {listed(parsed.columns)}")
    for name in data.columns[[isinstance(t, pd.CategoricalDtype) for t in data.dtypes]]:
        data = data.assign(**{name: data[name].cat.remove_unused_categories()})
    matrix = _matrix(parsed.fixed, data)
    return DesignMatrices(
        parsed=parsed,
        spec=matrix.model_spec,
        names=tuple(str(name) for name in matrix.columns),
        X_NB=_finite(matrix, parsed.fixed),
        y_N=_one_column(parsed.response, data, "score"),
        factors=tuple(_factors(parsed.bars, data, counted)),
        weights_N=None if weights is None else positive(data[weights]),
        rows=data.index,
        dropped=len(frame) - len(data),
        offset_N=_offset(parsed.offsets, data),
        dispersion=None if spread is None else _dispersion(spread, data),
        empty=_empty_cells(matrix.model_spec, data),
    )


def _empty_cells(spec: formulaic.ModelSpec, data: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Return the interactions with levels that no row has together, and which those are.

    What a smaller interaction says already is not said again, and very many are not listed.
    """
    found: dict[str, tuple[str, ...]] = {}
    known: list[set[tuple[str, object]]] = []
    for term in sorted(spec.terms, key=lambda term: len(term.factors)):
        columns = [re.sub(r"^C\((.*)\)$", r"\1", factor.expr) for factor in term.factors]
        own = [c for c in columns if c in data and _is_factor(spec, c, data)]
        if len(own) < 2:
            continue
        levels = [sorted(data[c].unique(), key=str) for c in own]
        there = set(data[own].drop_duplicates().itertuples(index=False, name=None))
        size = int(np.prod([float(len(values)) for values in levels]))
        if size == len(there):
            continue
        cells = product(*levels) if size <= MOST_CELLS else ()
        gone = [set(zip(own, cell, strict=True)) for cell in cells if cell not in there]
        new = [cell for cell in gone if not any(smaller <= cell for smaller in known)]
        known += new
        found[str(term)] = tuple(" and ".join(f"{c}={v}" for c, v in sorted(n)) for n in new)
    return found


def _is_factor(spec: formulaic.ModelSpec, column: str, data: pd.DataFrame) -> bool:
    """Return whether a column enters the fixed part by its levels; True and False are two."""
    kinds = [
        spec.encoder_state[e][0].value for e in (column, f"C({column})") if e in spec.encoder_state
    ]
    return "categorical" in kinds or data[column].dtype == bool


def _dispersion(spread: Parsed, data: pd.DataFrame) -> Dispersion | None:
    """Return the columns of a dispersion; of a constant alone there are none."""
    matrix = _matrix(spread.fixed, data)
    columns_NC = _finite(matrix, f"dispersion=~ {spread.fixed}")
    kept = independent_columns(columns_NC)
    if len(independent_columns(np.column_stack([np.ones(len(data)), columns_NC]))) > len(kept):
        raise AnalysisError(f"dispersion=~ {spread.fixed}: must have an intercept, or a factor")
    if len(kept) == 1:
        return None
    index_N, levels = _levels(spread.columns, data)
    names = tuple(str(matrix.columns[c]) for c in kept)
    return Dispersion(f"~ {spread.fixed}", names, columns_NC[:, kept], index_N, levels)


def _offset(expressions: tuple[str, ...], data: pd.DataFrame) -> Array | None:
    """Return the sum of the offsets, each of which is one column of numbers."""
    columns = [_one_column(expression, data, "offset") for expression in expressions]
    return np.sum(columns, axis=0) if columns else None


def offset_for(found: DesignMatrices, rows: pd.DataFrame) -> Array:
    """Return the offset of other rows, (N,); zeros where the formula has none.

    Raises:
        AnalysisError: a column is missing, or the offset depends on the table as a whole.
    """
    for expression in found.parsed.offsets:
        named = [c for c in found.parsed.columns if re.search(rf"\b{re.escape(c)}\b", expression)]
        if missing := [name for name in named if name not in rows]:
            raise AnalysisError(f"the model cannot be applied: no column {listed(missing)}")
        if re.search(r"\b(poly|center|scale)\(", expression):
            raise AnalysisError(
                f"the model cannot be applied: offset({expression}) depends on the table fitted; "
                f"make it a column first"
            )
    offset_N = _offset(found.parsed.offsets, rows)
    return np.zeros(len(rows)) if offset_N is None else offset_N


def of_rows(found: DesignMatrices, keep_N: Mask) -> DesignMatrices:
    """Return the design of some of its rows; levels that have none left are dropped."""
    factors = [_of_rows(factor, keep_N) for factor in found.factors]
    for factor in factors:
        _check_factor(factor.group, len(factor.levels), factor.columns_NP)
    return replace(
        found,
        X_NB=found.X_NB[keep_N],
        y_N=found.y_N[keep_N],
        factors=tuple(factors),
        weights_N=None if found.weights_N is None else found.weights_N[keep_N],
        rows=found.rows[keep_N],
        offset_N=None if found.offset_N is None else found.offset_N[keep_N],
    )


def _of_rows(factor: Factor, keep_N: Mask) -> Factor:
    used, index_N = np.unique(factor.index_N[keep_N], return_inverse=True)
    levels = tuple(factor.levels[i] for i in used)
    columns_NP = factor.columns_NP[keep_N]
    return replace(factor, columns_NP=columns_NP, index_N=index_N.astype(np.intp), levels=levels)


def _one_column(expression: str, data: pd.DataFrame, role: str) -> Array:
    """Return the one column of numbers that an expression stands for."""
    name = expression.strip("`")
    matrix = data[[name]] if name in data else _matrix(f"0 + {expression}", data)
    if matrix.shape[1] != 1 or not pd.api.types.is_numeric_dtype(matrix.dtypes.iloc[0]):
        raise AnalysisError(f"{role}={expression}: must be one column of numbers")
    return _finite(matrix, expression)[:, 0]


def matrix_for(found: DesignMatrices, rows: pd.DataFrame) -> Array:
    """Return the fixed-effects matrix of other `rows`, in the coding of the fitted ones."""
    needed = found.needed
    if missing := [name for name in needed if name not in rows]:
        raise AnalysisError(f"the model cannot be applied: no column {listed(missing)}")
    rows = rows[needed]  # other columns could hide a function's name
    if rows.isna().any(axis=None):
        raise AnalysisError("the model cannot be applied to rows with missing values")
    for name in rows.select_dtypes("category"):  # a category of no row is none of the fit's
        rows = rows.assign(**{str(name): rows[name].cat.remove_unused_categories()})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DataMismatchWarning)  # a level the fit has not seen
            spec = found.spec.update(output="numpy")  # a third quicker than by way of a frame
            matrix = spec.get_model_matrix(rows, context=_CONTEXT)
    except (FormulaicError, DataMismatchWarning, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AnalysisError(f"the model cannot be applied to these rows: {reason}") from error
    return np.asarray(matrix, dtype=np.float64)


def _matrix(expression: str, data: pd.DataFrame) -> formulaic.ModelMatrix:
    """Return the matrix of an expression, which is not to be changed: the last one is kept.

    A model's ranks are looked at before it is fitted, and its parts compared after, on one table.
    """
    own = data[[name for name in data if str(name) in expression]]  # some too many do no harm
    for known, table, matrix in _last:
        if known == expression and own.equals(table):
            return matrix
    found = _computed(expression, data)
    if found.size <= SMALL:
        _last[:] = [*_last[-LAST + 1 :], (expression, own, found)]
    return found


LAST, SMALL = 4, 1_000_000  # matrices that are kept, numbers in one
_last: list[tuple[str, pd.DataFrame, formulaic.ModelMatrix]] = []


def _computed(expression: str, data: pd.DataFrame) -> formulaic.ModelMatrix:
    try:
        with np.errstate(all="ignore"):  # what is not finite is reported by `_finite`
            # Rows that a function has no value for are kept, so that `_finite` can name it.
            return formulaic.model_matrix(expression, data, context=_CONTEXT, na_action="ignore")
    except (FormulaicError, ValueError, TypeError, SyntaxError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AnalysisError(f"formula: {expression!r} cannot be computed: {reason}") from error


def _finite(matrix: pd.DataFrame, name: str) -> Array:
    values = np.array(matrix, dtype=np.float64)  # a copy: the matrix may be asked for again
    bad = np.flatnonzero(~np.isfinite(values).all(axis=0))
    if len(bad):
        raise AnalysisError(f"{name}: {listed(matrix.columns[bad])} is not finite in every row")
    for largest in np.abs(values).max(axis=0, initial=0.0):
        if largest and not 1 / LARGEST <= largest <= LARGEST:
            advice = "divide" if largest > 1 else "multiply"
            raise AnalysisError(
                f"{name}: its largest number is {largest:.3g}, whose powers cannot be computed; "
                f"{advice} the column by a power of ten"
            )
    return values


def positive(weights: "pd.Series[Any]") -> Array:
    """Return a column of weights.

    Raises:
        AnalysisError: they are not all positive numbers, in one line.
    """
    if pd.api.types.is_numeric_dtype(weights) and weights.between(1 / LARGEST, LARGEST).all():
        return weights.to_numpy(dtype=np.float64)
    missing = int(weights.isna().sum())
    rows = f"; it is missing in {missing:,} of {len(weights):,} rows" if missing else ""
    raise AnalysisError(f"weights={weights.name}: must be a positive number in every row{rows}")


def _factors(bars: tuple[Bar, ...], data: pd.DataFrame, counted: bool) -> Iterator[Factor]:
    """Yield one factor for every group; the bars over one group become blocks of its Lambda."""
    groups: dict[tuple[str, ...], list[tuple[list[str], Array]]] = {}
    for bar in bars:
        groups.setdefault(bar.group, []).extend(_blocks(bar, data))
    for group, blocks in groups.items():
        names = [name for names, _ in blocks for name in names]
        label = ":".join(group)
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise AnalysisError(f"formula: {twice} varies over {label} twice; write it once")
        index_N, levels = _levels(group, data)
        free_PP = np.tril(block_diag(*[np.ones((len(n), len(n))) for n, _ in blocks])) > 0
        columns_NP = np.column_stack([values for _, values in blocks])
        _check_factor(label, len(levels), columns_NP, counted=counted)
        yield Factor(label, tuple(names), columns_NP, index_N, levels, free_PP)


def _blocks(bar: Bar, data: pd.DataFrame) -> Iterator[tuple[list[str], Array]]:
    if bar.expression == "1":  # by far the most common, and formulaic takes milliseconds
        yield ["Intercept"], np.ones((len(data), 1))
        return
    matrix = _matrix(bar.expression, data)
    values = _finite(matrix, bar.expression)
    whole = [slice(0, values.shape[1])]
    for part in whole if bar.correlated else matrix.model_spec.term_slices.values():
        yield [str(name) for name in matrix.columns[part]], values[:, part]


def _levels(group: tuple[str, ...], data: pd.DataFrame) -> tuple[Index, tuple[str, ...]]:
    if len(group) == 1:
        index_N, levels = pd.factorize(data[group[0]], sort=True)
        return index_N, tuple(str(level) for level in levels)
    index_N, pairs = pd.MultiIndex.from_frame(data[list(group)]).factorize(sort=True)
    return index_N, tuple(":".join(str(part) for part in pair) for pair in pairs)


def _check_factor(group: str, levels: int, columns_NP: Array, *, counted: bool = False) -> None:
    n = len(columns_NP)
    if levels < 2:
        raise AnalysisError(f"(... | {group}): {group} has one level only; it cannot vary")
    if levels * columns_NP.shape[1] >= n and not (counted and columns_NP.shape[1] == 1):
        raise AnalysisError(
            f"(... | {group}): {levels * columns_NP.shape[1]} random effects for {n} rows; they "
            f"cannot be separated from the residual, leave the term out or make it simpler"
        )
    if not columns_NP.any(axis=0).all():
        raise AnalysisError(f"(... | {group}): a column that varies over {group} is zero")
