"""Methods whose change is scale * B M A: they differ in the start and in what trains.

    kind       start                                        trains        a d x k matrix's count
    moslora    A and M drawn, B zero                        B, M, A       n (d + k) + n^2
    nlora      columns, corner and rows of W (Nystrom)      B, M, A; M    n (d + k) + n^2; n^2
    lora_sb    singular triples of a gradient               M             n^2
    lora_xs    U and S V of W, M zero                       M             n^2
    pmss       chosen columns and rows of W, M zero         M             n^2
    nora       U S and V of W, a pair inside                the pair      2 n i
    lora_mini  B and A drawn, a pair inside                 the pair      2 n i
    lamda      singular triples of W                        B, M          n d + n^2
    loldu      P L D U of W                                 D and scale   n + 1

A matrix with a side below n uses that side as its n, so that methods that train only the middle,
with n^2 parameters, can reach the budget of LoRA's r (d + k).
"""

from ablate.adapters.method import Count, Method, Shape, Shapes, Size, each
from ablate.adapters.options import (
    Option,
    Options,
    is_number,
    is_positive,
    one_of,
    positive,
    share,
    whole,
)

CONFIG = "ablate.adapters.three_factor.layer:ThreeFactorConfig"


def inner_size(n: int, shape: Shape) -> int:
    """Return the inner size of a matrix: `n`, or its smaller side."""
    return min(n, *shape)


def pair_size(n: int, nesting: int) -> int:
    """Return the inner size of the pair inside an inner size of `n`."""
    return max(1, n // nesting)


def _largest(shapes: Shapes, options: Options) -> int:
    return max(min(shape) for shape in shapes.values())


def _three(n: int, d: int, k: int) -> int:
    inner = inner_size(n, (d, k))
    return inner * (d + k + inner)


def _middle(n: int, d: int, k: int) -> int:
    return inner_size(n, (d, k)) ** 2


def _either(n: int, shapes: Shapes, options: Options) -> int:
    """Return the count of NLoRA, or of IntTune, which trains only M."""
    return each(_middle if options["trains"] == "middle" else _three)(n, shapes, options)


def _pair(n: int, shapes: Shapes, options: Options) -> int:
    inner = [inner_size(n, shape) for shape in shapes.values()]
    return sum(2 * i * pair_size(i, options["nesting"]) for i in inner)


def _left(n: int, d: int, k: int) -> int:
    inner = inner_size(n, (d, k))
    return inner * (d + inner)


_EITHER = Size(setting="r", count=_either, largest=_largest)
_MIDDLE = Size(setting="r", count=each(_middle), largest=_largest)
_PAIR = Size(setting="r", count=_pair, largest=_largest)
_LEFT = Size(setting="r", count=each(_left), largest=_largest)
_DIAGONAL = Size(
    setting="r", count=each(lambda n, d, k: inner_size(n, (d, k)) + 1), largest=_largest
)


def _factors(size: Size) -> Count:
    """Return the count of the outer factors, stored fixed or as they were at the start."""

    def stored(rank: int, shapes: Shapes, options: Options) -> int:
        return each(_three)(size.at(rank, shapes, options), shapes, options)

    return stored


_COMMON = {"scale": positive(1.0), "dropout": share()}
_NESTED = {**_COMMON, "nesting": whole(2)}
_STEP = Option(
    None,
    lambda v: v is None or is_positive(v),
    "positive, or null: the run's first rate, train.lr over the number of warm-up steps",
)
_FREEZE = Option(0.3, lambda v: is_number(v) and 0 < v <= 1, "a number in (0, 1]")


ROWS = {
    "moslora": Method(
        paper="2406.11909",
        config=CONFIG,
        formula="n (d + k) + n^2",
        # alpha = 2 r, as for LoRA. SLoRA differs in the distribution of A only.
        options={
            **_COMMON,
            "scale": positive(2.0),
            "start": one_of("kaiming", "gaussian"),
        },
        fixed={"trains": "all"},
        size=Size(setting="r", count=each(_three), largest=_largest),
        has_delta=True,
        start="ablate.adapters.three_factor.start:draw",
    ),
    "nlora": Method(
        paper="2502.14482",
        config=CONFIG,
        formula="n (d + k) + n^2; n^2 if the middle alone trains",
        options={
            **_COMMON,
            "start": one_of("nystrom", "nystrom_inverse"),
            "trains": one_of("all", "middle"),
        },
        size=_EITHER,
        stored=_factors(_EITHER),
        starts_nonzero=True,
        has_delta=True,
        start="ablate.adapters.three_factor.start:draw",
    ),
    "lora_sb": Method(
        paper="2411.19557",
        config=CONFIG,
        formula="n^2",
        options={**_COMMON, "step": _STEP},
        fixed={"start": "gradient_svd", "trains": "middle"},
        size=_MIDDLE,
        stored=_factors(_MIDDLE),
        starts_at_base=False,  # it starts with the low-rank form of full tuning's first step
        has_delta=True,
        start="ablate.adapters.three_factor.start:from_gradient",
    ),
    "lora_xs": Method(
        paper="2405.17604",
        config=CONFIG,
        formula="n^2",
        options=_COMMON,
        fixed={"start": "svd_input", "trains": "middle"},
        size=_MIDDLE,
        stored=_factors(_MIDDLE),
        has_delta=True,
        start="ablate.adapters.three_factor.start:draw",
    ),
    "pmss": Method(
        paper="2409.16722",
        config=CONFIG,
        formula="n^2",
        options=_COMMON,
        fixed={"start": "skeleton", "trains": "middle"},
        size=_MIDDLE,
        stored=_factors(_MIDDLE),
        has_delta=True,
        start="ablate.adapters.three_factor.start:draw",
    ),
    "nora": Method(
        paper="2408.10280",
        config=CONFIG,
        formula="2 n i",
        options=_NESTED,
        fixed={"start": "svd_outer", "trains": "middle"},
        size=_PAIR,
        stored=_factors(_PAIR),
        has_delta=True,
        start="ablate.adapters.three_factor.start:draw",
    ),
    "lora_mini": Method(
        paper="2411.15804",
        config=CONFIG,
        formula="2 n i",
        options=_NESTED,
        fixed={"start": "random_outer", "trains": "middle"},
        size=_PAIR,
        stored=_factors(_PAIR),
        has_delta=True,
        start="ablate.adapters.three_factor.start:draw",
    ),
    "lamda": Method(
        paper="2406.12832",
        config=CONFIG,
        formula="n d + n^2",
        options={**_COMMON, "freeze": _FREEZE},
        fixed={"start": "svd", "trains": "left"},
        size=_LEFT,
        stored=_factors(_LEFT),
        starts_nonzero=True,
        has_delta=True,
        start="ablate.adapters.three_factor.start:draw",
        hooks="ablate.adapters.three_factor.lamda:hooks",
    ),
    "loldu": Method(
        paper="2410.13618",
        config=CONFIG,
        formula="n + 1",
        options=_COMMON,
        fixed={"start": "lu", "trains": "middle_and_scale"},
        size=_DIAGONAL,
        stored=_factors(_DIAGONAL),
        matched=False,  # a whole diagonal is far less than LoRA at r = 1
        has_delta=True,
        vectors_only=True,
        start="ablate.adapters.three_factor.start:draw",
        shards=False,
    ),
}
