"""HTML and SVG written by functions, so that every text is escaped and every element closed."""

from collections.abc import Iterable, Sequence
from html import escape

from train.base.errors import one_line

VOID = {"meta", "img"}  # elements of HTML that have no end


class Markup(str):
    """Text that is HTML already. Any other string is escaped where it becomes part of an element."""


def text(words: object) -> Markup:
    """The words as HTML; control characters, which HTML must not hold, become escapes that one can read."""
    return words if isinstance(words, Markup) else Markup(escape(one_line(str(words))))


def joined(parts: Iterable[object], between: object = "") -> Markup:
    return Markup(text(between).join(map(text, parts)))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element; of its attributes `class_` is written "class", `aria_label` "aria-label"; None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(str(value))}"'
        for key, value in attributes.items() if value is not None
    )  # fmt: skip
    return Markup(f"<{name}{written}>" + ("" if name in VOID else f"{joined(children)}</{name}>"))


def name_of(person: str) -> Markup:
    """A name that people chose: whichever way its letters run, those around it keep theirs."""
    return element("bdi", person, class_="name")


def listed(sentences: Iterable[object], kind: str = "ul") -> Markup:
    """The sentences as a list; nothing where there are none."""
    items = joined(element("li", sentence) for sentence in sentences)
    return element(kind, items) if items else items


def scrolling(label: str, *children: object) -> Markup:
    """What may be wider than the screen: it scrolls within itself, with the keyboard too."""
    return element("div", *children, class_="scroll", tabindex=0, role="region", aria_label=label)


def table(
    caption: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    words: Sequence[str] = (),
    groups: Sequence[tuple[str, int]] = (),
) -> Markup:
    """A table. The first column names the row; those in `words` are aligned left, the others, numbers, right.

    groups: headings above the headings, and over how many.
    """
    kinds = [None if i == 0 or heading in words else "number" for i, heading in enumerate(headings)]

    def written(row: Sequence[object]) -> Markup:
        first, *others = row
        cells = (element("td", cell, class_=kind) for cell, kind in zip(others, kinds[1:], strict=True))
        return element("tr", element("th", first, scope="row"), *cells)

    rows = list(rows)
    above = joined(
        element("th", heading, scope="colgroup", colspan=span) if heading else element("td", colspan=span)
        for heading, span in groups
    )
    head = joined(element("th", h, scope="col", class_=kind) for h, kind in zip(headings, kinds, strict=True))
    head = joined(element("tr", row) for row in (above, head) if row)
    body = joined(map(written, rows))
    parts = [element("caption", element("span", caption)), element("thead", head), element("tbody", body)]
    whole = element("table", *parts, class_="small" if len(headings) <= 3 else None)
    return scrolling(caption, whole) if rows else Markup()


def lead(question: str, *answers: object) -> Markup:
    """The first words of a part of the report: what it asks, and what the answer is in this run."""
    told = (element("span", answer, class_="answer") for answer in answers)
    return element("p", element("span", question, class_="question"), *told, class_="lead")


def note(words: str) -> Markup:
    return element("p", words, class_="note")
