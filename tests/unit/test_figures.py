"""Figures: what is drawn is what was given, labels say what is published, colours stay apart."""

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patheffects import withStroke

from analysis.papers.plw import figure as plw
from analysis.questions.adapters import figure as adapters
from analysis.questions.tradeoff import figure as tradeoff
from analysis.questions.tradeoff.estimate import OFF, ON
from analysis.questions.tuning import figure as tuning
from analysis.report import draw, plots, style, words
from analysis.report.inlined import inline_svg
from analysis.table.published import read

# Machado, Oliveira and Fernandes 2009, IEEE TVCG 15(6), table of severity 1.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
NOTICEABLE = 10  # distance in CIELAB; 2.3 is just noticeable side by side
DOSES = [(0.0, 0.0), (0.01, 0.25), (0.1, 0.5), (1.0, 1.0)]


def lab(color, matrix):
    rgb = np.asarray(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(matrix) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.asarray(to_xyz) @ linear / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", BLINDNESS)
def test_the_palette_stays_apart_for_colour_blind_eyes(kind):
    colours = {c: lab(c, BLINDNESS[kind]) for c in style.PALETTE}
    for a, b in itertools.combinations(colours, 2):
        assert np.linalg.norm(colours[a] - colours[b]) > NOTICEABLE, (kind, a, b)


def test_a_level_keeps_its_look_and_new_levels_get_their_own():
    first = style.looks(["none", "mine", "yours", "special"])
    again = style.looks(["special", "none"])
    assert first["none"] == again["none"] == style.Look(style.BLUE, "o")
    assert len({look.color for look in first.values()}) == 4
    assert len({look.marker for look in first.values()}) == 4


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [5.0, 1.0, 1.1], [3.0, 2.0, 1.0], [2.0]])
def test_labels_are_moved_apart_and_keep_their_order_and_middle(values):
    moved = style.spread(values, 0.5)
    assert np.all(np.diff(np.sort(moved)) >= 0.5 - 1e-6)
    for a, b in itertools.combinations(range(len(values)), 2):
        if values[a] < values[b]:
            assert moved[a] < moved[b]
    assert np.mean(moved) == pytest.approx(np.mean(values))


def dose_points(**panel):
    rows = [
        panel | {"masking": m, "plw": plw, "wp": wp, "estimate": 50 + k + 10 * wp}
        for k, m in enumerate(("none", "special"))
        for plw, wp in DOSES
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(low=frame["estimate"] - 1, high=frame["estimate"] + 2)


def markers_of(axis):
    """Return label -> (x, y) of the markers drawn with errorbars."""
    found = {}
    for bars in axis.containers:
        line = bars.lines[0]
        found[bars.get_label()] = (line.get_xdata(), line.get_ydata())
    return found


def test_score_curves_draw_the_means_the_curve_the_band_and_the_base():
    groups = ("mc source", "long target")
    points = pd.concat(
        [dose_points(stratum=d, task_group=g) for d in ("a", "b, big") for g in groups]
    )
    wp = np.linspace(0, 1, 11)
    where = {"stratum": "b, big", "task_group": "long target"}
    curve = pd.DataFrame(where | {"masking": "none", "wp": wp})
    curve = curve.assign(estimate=40 + wp, low=39 + wp, high=41 + wp)
    base = pd.DataFrame(
        {"stratum": ["a", "b, big", "b, big"], "task_group": [groups[1], *groups],
         "estimate": [22.0, 33.0, 44.0]}
    )  # fmt: skip
    figure = plots.score_curves(points, curve, base=base)
    assert len(figure.axes) == 4
    axis = figure.axes[3]  # data set b, long generation
    x, y = markers_of(axis)["none"]
    np.testing.assert_allclose(y, [50 + 10 * wp for _, wp in DOSES])
    np.testing.assert_allclose(x, [wp for _, wp in DOSES], atol=draw.DODGE)
    smooth = [line for line in axis.lines if len(line.get_xdata()) == 11]
    np.testing.assert_allclose(smooth[0].get_ydata(), curve["estimate"])
    band = axis.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(39)
    assert band[:, 1].max() == pytest.approx(42)
    level = {22.0, 33.0, 44.0} & {line.get_ydata()[0] for line in axis.lines}
    assert level == {44.0}
    assert [t.get_text() for t in axis.get_xticklabels()] == ["0", ".01", ".1", "1"]
    labels = {t.get_text() for t in figure.legends[0].get_texts()}
    assert labels == {"none", "special", "untouched base"}
    titles = [a.get_title(loc="left").replace("\n", " ") for a in figure.axes]
    assert titles == [*map(words.group_text, groups), "", ""]
    assert [a.get_ylabel() for a in figure.axes] == ["a", "", "b\nbig", ""]


def test_an_interval_has_the_length_that_was_given():
    figure = plots.score_curves(dose_points(stratum="a", task_group="mc"), pd.DataFrame())
    segments = figure.axes[0].containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(
        [s[:, 1] for s in segments], [[49, 52], [51.5, 54.5], [54, 57], [59, 62]]
    )


def test_full_tuning_is_a_level_and_adapters_are_labelled_at_their_ends():
    rows = [("full", 0, 60.0), ("lora", 4, 50.0), ("lora", 8, 52.0), ("mora", 4, 50.5)]
    points = pd.DataFrame(rows, columns=["adapter", "rank", "estimate"])
    points = points.assign(panel="p", low=points["estimate"] - 1, high=points["estimate"] + 1)
    points["trainable_parameters"] = points["rank"] * 1000.0
    axis = adapters.capacity(points).axes[0]
    levels = [line for line in axis.lines if list(line.get_ydata()) == [60.0, 60.0]]
    assert len(levels) == 1
    assert {t.get_text() for t in axis.texts} == {"full", "lora", "mora", "4", "8"}
    assert [t.get_text() for t in axis.get_xticklabels()] == ["4k", "8k"]
    unknown = adapters.capacity(points.assign(trainable_parameters=np.nan)).axes[0]
    assert [t.get_text() for t in unknown.get_xticklabels()] == ["4", "8"]
    assert axis.get_xscale() == "log"


def forest_rows():
    return pd.DataFrame(
        {
            "group": ["one", "one", "two"],
            "label": ["a", "b", "c"],
            "estimate": [1.0, -2.0, 3.0],
            "low": [0.5, -5.0, 2.0],
            "high": [1.5, 1.0, 4.0],
            "verdict": ["distinguishable", "not distinguishable", "distinguishable"],
        }
    )


def test_a_forest_is_hollow_where_nothing_can_be_told():
    axis = plots.forest(forest_rows(), margin=1.0).axes[0]
    lines = {bars.lines[0].get_xdata()[0]: bars for bars in axis.containers}
    assert set(lines) == {1.0, -2.0, 3.0}
    assert lines[-2.0].lines[0].get_markerfacecolor() == style.PAPER
    assert lines[1.0].lines[0].get_markerfacecolor() == style.BLUE
    np.testing.assert_allclose(lines[3.0].lines[2][0].get_segments()[0][:, 0], [2.0, 4.0])
    labels = [t.get_text() for t in axis.get_yticklabels()]
    assert labels == ["one", "a", "b", "two", "c"]
    bold = [t.get_text() for t in axis.get_yticklabels() if t.get_fontweight() == "bold"]
    assert bold == ["one", "two"]


def test_a_long_label_leaves_a_forest_its_axis():
    long = "rate 0.001 − 0.0003, at " + ", ".join(f"train.setting_{i} 0.{i}" for i in range(9))
    rows = forest_rows().assign(label=[long, f"{long} ‡", "c"])
    figure = plots.forest(rows, margin=1.0)
    figure.draw_without_rendering()  # a warning, which is an error, where no room is left
    axis = figure.axes[0]
    assert axis.get_position().width > 0.4
    labels = [t.get_text() for t in axis.get_yticklabels()]
    assert labels[1].startswith("rate 0.001 − 0.0003, at train.setting_0")
    assert labels[1].endswith("…")
    assert labels[2].endswith("… ‡")
    assert max(map(len, labels)) <= draw.LONGEST


def test_a_narrow_forest_is_one_column_wide_with_every_label_above_its_line():
    long = "rate 0.001 − 0.0003, at " + ", ".join(f"train.setting_{i} 0.{i}" for i in range(9))
    figure = plots.forest(forest_rows().assign(label=[long, f"{long} ‡", "c"]), narrow=True)
    figure.draw_without_rendering()
    axis = figure.axes[0]
    assert figure.get_figwidth() == style.COLUMN
    assert axis.get_position().width > 0.9  # nothing stands beside it
    assert axis.get_xlim()[0] < 0 < axis.get_xlim()[1]
    texts = {t.get_text(): t for t in axis.texts}
    assert [t.get_fontweight() for t in texts.values()] == [
        "bold",
        *2 * ["normal"],
        "bold",
        "normal",
    ]
    edge = axis.get_window_extent()
    places = sorted(bars.lines[0].get_ydata()[0] for bars in axis.containers)
    for name, text in texts.items():
        box = text.get_window_extent()
        assert edge.x0 - 1 <= box.x0
        assert box.x1 <= figure.bbox.x1
        if text.get_fontweight() == "normal":  # above its own line, below the one before
            own = max(y for y in places if y < text.get_position()[1])
            assert own < axis.transData.inverted().transform((0, box.y0))[1], name
    assert next(t for t in texts if "‡" in t).endswith("… ‡")


def test_learning_is_drawn_over_forgetting_and_the_front_is_named():
    ends = {"forgetting_low": 8.0, "forgetting_high": 10.0, "learning_low": 18, "learning_high": 22}
    row = {"stratum": "d", "adapter": "lora", "forgetting": 9.0, "learning": 20.0} | ends
    rows = [
        row | {"label": "lora r8", "undominated": True, "chance": 0.97, "verdict": ON},
        row | {"label": "lora r2", "undominated": False, "chance": 0.0, "verdict": OFF,
               "learning": 15.0},
    ]  # fmt: skip
    axis = tradeoff.front(pd.DataFrame(rows)).axes[0]
    drawn = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines
             if len(line.get_xdata()) == 1]  # fmt: skip
    assert (9.0, 20.0) in drawn
    assert (9.0, 15.0) in drawn
    assert [t.get_text() for t in axis.texts] == ["lora r8"]
    assert "forgetting" in axis.get_xlabel()
    assert "learning" in axis.get_ylabel()


def test_the_chosen_learning_rate_is_marked():
    table = pd.DataFrame({"dataset": "d", "label": "full", "lr": [1e-3, 3e-3], "loss": [2.0, 1.0]})
    axis = tuning.rates(table.assign(chosen=[False, True])).axes[0]
    marked = [line for line in axis.lines if line.get_marker() == "X"]
    assert [float(line.get_xdata()[0]) for line in marked] == [3e-3]


def test_rates_of_many_arms_are_a_row_each_and_nothing_covers_another():
    rows = [
        {"dataset": "d", "label": f"arm {i:02d}", "lr": lr, "loss": 1 + i / 10 + abs(k - 1)}
        for i in range(40) for k, lr in enumerate((1e-3, 2e-3, 4e-3))
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    figure = tuning.rates_of_many(table.assign(chosen=table["lr"] == 2e-3))
    figure.draw_without_rendering()
    axis = figure.axes[0]
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names[0] == "arm 00"
    assert axis.get_yticks()[0] == 39  # the lowest loss on top
    boxes = [text.get_window_extent() for text in axis.get_yticklabels()]
    assert all(a.y0 >= b.y1 for a, b in itertools.pairwise(boxes))
    (squares,) = axis.collections
    assert len(squares.get_offsets()) == 120
    assert sorted(axis.lines[0].get_xdata()) == [2e-3] * 40


def test_residuals_of_a_normal_lie_on_the_line():
    rng = np.random.default_rng(0)
    residual = pd.Series(rng.normal(0, 2, 400))
    axis = plots.residuals(pd.Series(np.zeros(400)), residual).axes[1]
    dots = axis.lines[0]
    slope = np.polyfit(dots.get_xdata(), dots.get_ydata(), 1)[0]
    assert slope == pytest.approx(2, rel=0.1)


# -- the PLW paper ----------------------------------------------------------------------------


def test_the_published_curve_has_the_values_of_the_published_table():
    levels = read("plw_levels")
    found = plw.published_curve(levels["w_p"].to_numpy())
    np.testing.assert_allclose(found["estimate"], levels["curve_value_short"], atol=2e-3)
    wp = levels["plw"] ** 0.30103
    np.testing.assert_allclose(wp, levels["w_p"], atol=1e-4)


def test_every_panel_says_here_or_published():
    points = pd.concat(
        [dose_points(stratum=d, task_group="mc") for d in ("micro", "micro_short", "own")]
    )
    figure = plw.score(points[points["masking"] == "none"], pd.DataFrame())
    titles = [axis.get_title(loc="left") for axis in figure.axes[:2]]
    assert titles[0].startswith("here:")
    assert titles[1].startswith("published:")
    micro, short, own = (figure.axes[i] for i in (1, 3, 5))
    assert "0.237" in micro.texts[0].get_text()  # the p-value of a fit that did not converge
    assert "converge" in micro.texts[0].get_text()
    curve = short.lines[0]
    assert curve.get_xdata()[np.argmax(curve.get_ydata())] == pytest.approx(0.652, abs=0.01)
    assert "not stated" in short.get_ylabel()
    assert own.texts[0].get_text() == "no counterpart"


def optimum_rows():
    return pd.DataFrame(
        {
            "group": ["short", "short"],
            "label": ["mc", "long"],
            "estimate": [0.1, np.nan],
            "low": [0.01, np.nan],
            "high": [0.5, np.nan],
            "verdict": ["interior optimum", "not identified"],
        }
    )


def test_an_optimum_is_drawn_only_where_it_is_known():
    axis = plw.optimum(optimum_rows()).axes[0]
    spans = [
        line for line in axis.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"
    ]
    assert len(spans) == 1
    np.testing.assert_allclose(spans[0].get_xdata(), [0.25, 0.5**0.30103], atol=1e-4)
    texts = [t.get_text() for t in axis.texts]
    assert texts.count("not identified") == 1
    dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert dashed[0].get_xdata()[0] == pytest.approx(0.242**0.30103)
    assert any("published: 0.242" in t for t in texts)
    assert not any("published" in t.get_text() for t in plots.optimum(optimum_rows()).axes[0].texts)


@pytest.mark.parametrize("name", plw.MEASURES)
def test_a_measure_is_drawn_here_and_what_was_published_is_said(name):
    points = dose_points(dataset="micro_short").rename(columns={"masking": "model"})
    figure = plw.measure(points, name)
    axis = figure.axes[0]
    assert axis.get_title(loc="left") == "here: micro_short"
    assert figure.get_supxlabel().startswith("published:")
    np.testing.assert_allclose(markers_of(axis)["none"][1], [50, 52.5, 55, 60])


def test_published_ranges_stand_where_they_were_published():
    points = dose_points(dataset="micro_short").rename(columns={"masking": "model"})
    near = plw.measure(points, "weight_distance").axes[0].patches[0]
    x = [near.get_x(), near.get_x() + near.get_width()]
    np.testing.assert_allclose(x, [0.0005**0.30103, 0.5], atol=1e-4)
    lines = plw.measure(points, "prompt_bleu").axes[0].lines
    plateau = [line for line in lines if list(line.get_ydata()) == [80, 80]]
    np.testing.assert_allclose(plateau[0].get_xdata(), [0, 0.5], atol=1e-4)


# -- files ------------------------------------------------------------------------------------


def test_the_same_figure_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        style.save(plots.forest(forest_rows()), tmp_path / name / "forest")
    for ending in ("svg", "png"):
        files = [(tmp_path / n / f"forest.{ending}").read_bytes() for n in ("a", "b")]
        assert files[0] == files[1]
    assert b"<text" not in files[0]  # letters are paths: no font is needed


def test_an_inlined_figure_has_ids_of_its_own_and_the_pages_colours(tmp_path):
    svg, _ = style.save(plots.forest(forest_rows()), tmp_path / "forest")
    text = inline_svg(svg.read_text(), "mine")
    assert text.startswith("<svg")
    assert all(i.startswith("mine-") for i in re.findall(r'\bid="([^"]+)"', text))
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert used
    assert all(name.startswith("mine-") for pair in used for name in pair if name)
    assert style.BLUE not in text
    assert "var(--blue)" in text


def marks(root):
    """Return every outline of a drawing in the order of the drawing: its points and its style."""
    strip = lambda tag: tag.rpartition("}")[2]  # noqa: E731
    known = {e.get("id"): e for e in root.iter() if e.get("id")}
    rules = "".join(e.text or "" for e in root.iter() if strip(e.tag) == "style")
    classes = dict(re.findall(r"\.([\w-]+)\{([^}]*)\}", rules))
    number = r"-?\d+\.?\d*(?:e[+-]?\d+)?"

    def turned(text):
        found = np.eye(3)
        for name, said in re.findall(r"(\w+)\(([^)]*)\)", text):
            v = [float(n) for n in re.findall(number, said)]
            if name == "translate":
                own = [[1, 0, v[0]], [0, 1, v[1]], [0, 0, 1]]
            elif name == "scale":
                own = np.diag([v[0], v[-1], 1.0])
            else:
                c, s = np.cos(np.deg2rad(v[0])), np.sin(np.deg2rad(v[0]))
                own = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
            found = found @ np.array(own)
        return found

    def walk(element, at, style):
        tag = strip(element.tag)
        own = classes.get(element.get("class"), element.get("style") or "")
        style = style | dict(re.findall(r"([\w-]+):\s*([^;]+)", own))
        at = at @ turned(element.get("transform", ""))
        if tag == "use":
            target = next(v for k, v in element.attrib.items() if strip(k) == "href")
            shift = f"translate({element.get('x', 0)} {element.get('y', 0)})"
            yield from walk(known[target[1:]], at @ turned(shift), style)
        elif tag == "path":
            v = [float(n) for n in re.findall(number, element.get("d", ""))]
            xy = np.column_stack([v[::2], v[1::2], np.ones(len(v) // 2)]) @ at.T
            yield re.sub(r"[^A-Za-z]", "", element.get("d", "")), xy[:, :2], style
        elif tag not in ("defs", "clipPath", "metadata", "style"):
            for child in element:
                yield from walk(child, at, style)

    return list(walk(root, np.eye(3), {}))


@pytest.mark.parametrize("name", ["forest", "curves", "residuals", "map"])
def test_an_inlined_figure_draws_the_same_marks_in_fewer_characters(tmp_path, name):
    """Every outline, in its order, within a hundredth of a point and in its colours."""
    rng = np.random.default_rng(0)
    made = {
        "forest": lambda: plots.forest(forest_rows()),
        "curves": lambda: plots.score_curves(dose_points(stratum="a", task_group="mc"), None),
        "residuals": lambda: plots.residuals(*(pd.Series(rng.normal(size=90)) for _ in "ab")),
        "map": outlined_letters,
    }[name]()
    svg, _ = style.save(made, tmp_path / name)
    text = svg.read_text()
    short = inline_svg(text, name, "f3")
    assert len(short) < 0.65 * len(text)
    shown = short
    for color, css in style.CSS_NAMES.items():
        shown = shown.replace(f"var(--{css})", color)
    wanted, found = (marks(ElementTree.fromstring(t)) for t in (text, shown))
    assert len(wanted) == len(found) > 20
    for (kind, xy, looks), (other, uv, seen) in zip(wanted, found, strict=True):
        assert (kind, looks) == (other, seen)
        np.testing.assert_allclose(xy, uv, atol=0.015)


def outlined_letters():
    """Return a figure with the same outlined words at several places, and with a picture."""
    figure, (axis,) = style.grid(1, columns=1)
    axis.pcolormesh(np.arange(9.0).reshape(3, 3), rasterized=True)
    for x in (0.5, 1.25, 2.0):
        axis.text(x, x, "+1.4", path_effects=[withStroke(linewidth=1.5, foreground="#ffffff")])
    return figure


def test_plw_labels_are_as_many_as_have_room():
    figure, (axis,) = style.grid(1, columns=1)
    draw.plw_axis([axis], [0, 5e-4, 2.236e-3, 0.01, 0.02463, 0.05, 0.1, 0.2463, 0.5, 1])
    places = axis.get_xticks()
    assert np.diff(places).min() >= 0.085
    labels = [t.get_text() for t in axis.get_xticklabels()]
    assert {"0", "1", ".1", ".01"} <= set(labels)
    assert figure.axes == [axis]
