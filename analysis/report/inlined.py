"""A figure's SVG as it stands in the page: the same drawing in a third of the characters.

matplotlib writes a group for every tick, a style for every mark, an outlined letter wherever it
stands and six decimals of a point. Here groups that say nothing are gone, equal styles are one
class, equal texts and outlines are written once, and coordinates have as many decimals as can be
seen. The files beside the page stay as matplotlib wrote them.
"""

import html
import re
from collections import Counter
from dataclasses import dataclass, field
from xml.etree import ElementTree

from analysis.report.style import CSS_NAMES

Element = ElementTree.Element
SVG = "{http://www.w3.org/2000/svg}"
G, PATH, USE, DEFS = (f"{SVG}{name}" for name in ("g", "path", "use", "defs"))
HREF = "{http://www.w3.org/1999/xlink}href"
NUMBERS = ("x", "y", "width", "height", "d", "points", "transform")
LONG = 80  # characters from which an outline may be worth a name of its own
_NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?|-?\d+")
_TURNS = re.compile("[^MLQCSTZz0-9.e+\\s-]")  # what is no pair of coordinates after pair
_SPACE = re.compile(r"\s*([A-Za-z])\s*|\s+$")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_SHIFT = re.compile(r"translate\(([^ )]+)[ ,]+([^ )]+)\)")


def inline_svg(text: str, name: str, prefix: str = "") -> str:
    """Return the text of an SVG file as an `<svg>` element to stand in a page beside others.

    Ids and classes carry `prefix` so that two figures never share one, and colours become the
    page's own variables so that the figure follows a dark page.

    Args:
        text: of a file that matplotlib wrote.
        name: of the figure; its caption has the id NAME-caption.
        prefix: that no other figure has and that a class may begin with; the name by default.
    """
    return _Writer(prefix or name).page(ElementTree.fromstring(text), name)


@dataclass
class _Writer:
    """Writes one figure, and remembers what it wrote to refer to it again."""

    prefix: str
    ids: dict[str, str] = field(default_factory=dict)  # of what is referred to -> in the page
    classes: dict[str, str] = field(default_factory=dict)  # style -> class
    times: Counter[str] = field(default_factory=Counter)  # texts and outlines, how often
    written: dict[str, str] = field(default_factory=dict)  # those of several times -> id

    def page(self, root: Element, name: str) -> str:
        """Return the whole figure."""
        for element in root.iter():
            for value in element.attrib.values():
                for wanted in _REFERENCE.findall(value):
                    self.named(wanted)
            if (target := element.get(HREF, "")).startswith("#"):
                self.named(target[1:])
        for parent in root.iter(G):
            for element in parent:
                if _is_text(element):
                    self.times[self.inside(element)] += 1
                elif (outline := _outline(element, parent)) is not None:
                    self.times[outline[0]] += 1
        body = self.inside(root)
        size = "".join(f' {n}="{root.get(n)}"' for n in ("width", "height", "viewBox"))
        rules = "".join(f".{own}{{{style}}}" for style, own in self.classes.items())
        head = f'<svg role="img" aria-labelledby="{name}-caption"{size}>'
        svg = f"{head}<style>{rules}</style>{body}</svg>"
        for color, css in CSS_NAMES.items():
            svg = svg.replace(color, f"var(--{css})")
        return svg

    def named(self, old: str) -> str:
        """Return what an id is in the page."""
        return self.ids.setdefault(old, f"{self.prefix}-{len(self.ids)}")

    def inside(self, element: Element, but: str = "") -> str:
        """Return what stands inside an element, without an attribute that it says for all."""
        return "".join(self.element(child, element, but) for child in element)

    def element(self, element: Element, parent: Element, but: str = "") -> str:
        """Return an element with all that is in it; a group that says nothing is left out."""
        tag = element.tag.removeprefix(SVG)
        if tag == "metadata":
            return ""
        if tag == "style":
            return f"<style>{html.escape(element.text or '', quote=False)}</style>"
        if (outline := _outline(element, parent)) is not None and self.times[outline[0]] > 1:
            return self.shifted(element, *outline)
        common = _common_style(element)
        said = self.said({k: v for k, v in element.attrib.items() if k != but})
        said += self.said({"style": common}) if common else ""
        own = self.inside(element, "style" if common else "")
        if element.tag in (G, DEFS) and (not own or (element.tag == G and not said)):
            return own
        if _is_text(element) and self.times[own] > 1:
            return self.again(own, said)
        return f"<{tag}{said}>{own}</{tag}>" if own else f"<{tag}{said}/>"

    def again(self, letters: str, said: str) -> str:
        """Return a text that stands in the figure several times."""
        if letters in self.written:
            return f'<use href="#{self.written[letters]}"{said}/>'
        self.written[letters] = self.named(f"written {len(self.written)}")
        return f'<g{said}><g id="{self.written[letters]}">{letters}</g></g>'

    def shifted(self, element: Element, outline: str, x: float, y: float) -> str:
        """Return an outline that stands in the figure several times, at its place."""
        first = ""
        if outline not in self.written:
            self.written[outline] = self.named(f"written {len(self.written)}")
            first = f'<defs><path id="{self.written[outline]}" d="{outline}"/></defs>'
        said = self.said({"style": element.get("style", "")})
        place = f'x="{_digits(x)}" y="{_digits(y)}"'
        return f'{first}<use href="#{self.written[outline]}" {place}{said}/>'

    def said(self, attributes: dict[str, str]) -> str:
        """Return attributes as text."""
        found: dict[str, str] = {}
        for key, value in _placed(attributes).items():
            if key == "style":
                found["class"] = self.styled(value)
            elif key == HREF:
                inner = value.startswith("#")
                found["href"] = f"#{self.named(value[1:])}" if inner else re.sub(r"\s", "", value)
            elif key in NUMBERS:
                found[key] = _shortened(value)
            elif key != "id":
                found[key] = self.referring(value)
            elif value in self.ids:
                found[key] = self.ids[value]
        return "".join(f' {key}="{html.escape(value)}"' for key, value in found.items())

    def styled(self, style: str) -> str:
        """Return the class of a style."""
        short = re.sub(r"\s*([:;,])\s*", r"\1", self.referring(style.strip()))
        return self.classes.setdefault(short, f"{self.prefix}_{len(self.classes)}")

    def referring(self, value: str) -> str:
        """Return a value with the page's ids."""
        return _REFERENCE.sub(lambda m: f"url(#{self.named(m[1])})", value)


def _is_text(element: Element) -> bool:
    """Return whether a group holds letters alone."""
    known = element.tag == G and "scale" in element.get("transform", "")
    return known and all(child.tag in (USE, DEFS) for child in element)


def _common_style(element: Element) -> str:
    """Return the style of all marks of a group that has none of its own; "" where they differ."""
    if element.tag != G or len(element) < 2 or "style" in element.attrib:
        return ""
    styles = {child.get("style", "") if child.tag == USE else "" for child in element}
    return styles.pop() if len(styles) == 1 else ""


def _outline(element: Element, parent: Element) -> tuple[str, float, float] | None:
    """Return a long path from its first point on, and where that is; None of anything else."""
    drawn = element.get("d", "") if element.tag == PATH and parent.tag == G else ""
    if len(drawn) < LONG or set(element.attrib) - {"d", "style"} or _TURNS.search(drawn):
        return None
    numbers = [float(one) for one in _NUMBER.findall(drawn)]
    (x, y), places = numbers[:2], iter(range(len(numbers)))
    shifted = _NUMBER.sub(lambda m: _digits(float(m[0]) - (y if next(places) % 2 else x)), drawn)
    return _SPACE.sub(r"\1", shifted), x, y


def _placed(attributes: dict[str, str]) -> dict[str, str]:
    """Return the attributes of an element, where it is drawn again as x and y."""
    shift = _SHIFT.fullmatch(attributes.get("transform", ""))
    if shift is None or HREF not in attributes or {"x", "y", "clip-path"} & set(attributes):
        return attributes
    own = {key: value for key, value in attributes.items() if key != "transform"}
    return own | {n: v for n, v in zip("xy", shift.groups(), strict=True) if float(v)}


def _shortened(value: str) -> str:
    """Return coordinates with as many decimals as can be seen, without needless spaces."""
    if "scale" in value or "rotate" in value:  # factors and angles keep their digits
        return _SHIFT.sub(lambda m: f"translate({_shortened(m[1])} {_shortened(m[2])})", value)
    return _SPACE.sub(r"\1", _NUMBER.sub(lambda m: _digits(float(m[0])), value))


def _digits(number: float) -> str:
    """Return a coordinate in points to a hundredth, a small one to a thousandth."""
    text = f"{number:.2f}" if abs(number) >= 10 else f"{number:.3f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text if float(text) else "0"
