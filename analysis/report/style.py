"""How every figure looks: sizes for a paper column, one colour and marker per level, no chart junk.

The six colours stay apart under the three kinds of colour blindness (a test measures it), and a
marker repeats what the colour says. A level keeps its colour in every figure of a report: known
levels have theirs here, others get the next free one in the order in which they are first seen.
Figures are made without pyplot, so that nothing depends on a global state or a display.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from analysis.engine.ties import rising

PAGE = 7.0  # inches: the full width
COLUMN = 3.4  # inches: one of two columns
PRINTED = 300  # dots an inch of a PNG
INK, MUTED, RULE, PAPER = "#24292f", "#6b7480", "#d9dee4", "#ffffff"
BLUE, VERMILION, GREEN, PLUM, GOLD, SKY = (
    "#0b5cab", "#cf4a12", "#35a27a", "#5e1a5a", "#cfa21c", "#56a9e8",
)  # fmt: skip
PALETTE = (BLUE, VERMILION, GREEN, PLUM, GOLD, SKY)
MARKERS = ("o", "s", "D", "^", "v", "P")
# What stands for each colour in a dark page: the inlined figures refer to these by name.
CSS_NAMES: Mapping[str, str] = {
    INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "card", BLUE: "blue",
    VERMILION: "vermilion", GREEN: "green", PLUM: "plum", GOLD: "gold", SKY: "sky",
}  # fmt: skip
KNOWN: Mapping[str, tuple[str, str]] = {  # level -> colour, marker
    "instruction": (INK, "X"),
    "none": (BLUE, "o"),
    "boilerplate": (VERMILION, "s"),
    "special": (GREEN, "D"),
    "im_released": (PLUM, "^"),
    "placebo": (MUTED, "v"),
    "full": (INK, "X"),
    "lora": (BLUE, "o"),
    "mora": (VERMILION, "s"),
    "rslora": (GREEN, "D"),
    "dora": (PLUM, "^"),
    "here": (BLUE, "o"),
    "published": (MUTED, "s"),
}


def _family() -> list[str]:
    installed = set(font_manager.get_font_names())
    wanted = ("Helvetica", "Arial", "Liberation Sans", "DejaVu Sans", *_FURTHER)
    return [name for name in wanted if name in installed]


# For characters that those lack: names of levels may be Chinese, Japanese or Korean.
_FURTHER = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "PingFang SC", "Hiragino Sans",
    "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "WenQuanYi Micro Hei", "Arial Unicode MS",
)  # fmt: skip


PAPER_STYLE: Mapping[str, Any] = {
    "font.family": _family(),
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 8.5,
    "figure.labelsize": 7.5,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "svg.fonttype": "path",  # a figure looks the same where the font is not installed
    "pdf.fonttype": 42,
    "axes.unicode_minus": True,
    "mathtext.default": "regular",
    "text.parse_math": False,  # levels are names, a $ in them as well
}

styled = mpl.rc_context(dict(PAPER_STYLE))  # decorates a figure function


@dataclass(frozen=True, slots=True)
class Look:
    """How one level is drawn."""

    color: str
    marker: str

    @property
    def size(self) -> float:
        """The marker's size in points; a cross needs more to weigh the same."""
        return 5.2 if self.marker == "X" else 3.8


KNOWN_LOOKS = {name: Look(*pair) for name, pair in KNOWN.items()}


def looks(levels: Iterable[object]) -> dict[str, Look]:
    """Return a colour and a marker per level; known levels keep theirs, others get the next."""
    names = list(dict.fromkeys(str(level) for level in levels))
    taken = {KNOWN[name][0] for name in names if name in KNOWN}
    free = [pair for pair in zip(PALETTE, MARKERS, strict=True) if pair[0] not in taken]
    free = free or list(zip(PALETTE, MARKERS, strict=True))
    unknown = [name for name in names if name not in KNOWN]
    chosen = {name: Look(*free[i % len(free)]) for i, name in enumerate(unknown)}
    return {name: chosen[name] if name in chosen else KNOWN_LOOKS[name] for name in names}


def grid(
    panels: int, *, columns: int, height: float = 1.9, width: float = PAGE, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure with `panels` axes in rows of `columns`; `height` is one row's, in inches."""
    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for spare in axes[panels:]:
        spare.remove()
    return figure, axes[:panels]


def spread(positions: Iterable[float], gap: float) -> list[float]:
    """Return `positions` moved apart by at least `gap`, in their order, as little as one pass can.

    For direct labels at line ends, which would otherwise overprint.
    """
    values = list(positions)
    order = rising(values)
    moved = [values[i] for i in order]
    for _ in range(50):
        for i in range(1, len(moved)):
            short = gap - (moved[i] - moved[i - 1])
            if short > 1e-12:
                moved[i - 1] -= short / 2
                moved[i] += short / 2
    back = [0.0] * len(values)
    for place, i in enumerate(order):
        back[i] = moved[place]
    return back


def note(axes: Axes, text: str) -> None:
    """Write a muted remark into the middle of `axes`, where there is nothing to draw."""
    at = axes.transAxes
    axes.text(0.5, 0.5, text, transform=at, ha="center", va="center", color=MUTED, wrap=True)


@mpl.rc_context(dict(PAPER_STYLE) | {"svg.hashsalt": "ablate"})
def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write `stem`.svg and `stem`.png (at `PRINTED`) and return both paths; no date is stored."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    with warnings.catch_warnings():  # a character that no font has is drawn as a box
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)  # once, not once per file
            figure.set_layout_engine("none")
        # `savefig` would draw a figure that had a layout twice for every file.
        FigureCanvasSVG(figure).print_svg(paths[0], metadata={"Date": None, "Creator": None})
        screen = figure.get_dpi()
        figure.set_dpi(PRINTED)
        FigureCanvasAgg(figure).print_png(paths[1], metadata={"Software": None})
        figure.set_dpi(screen)
    return paths
