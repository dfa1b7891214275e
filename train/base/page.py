"""A page of HTML that needs nothing else: style and pictures are within it."""

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from train.base.markup import Markup, element, scrolling

STYLE = Path(__file__).with_name("page.css")
# The page loads nothing and runs nothing, whatever the names in it say: the browser holds it to that.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, *content: object, refresh: int | None = None) -> str:
    """The page as text. `refresh`: the browser reads it anew after so many seconds."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", http_equiv="refresh", content=refresh) if refresh else "",
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', *content), lang='en')}\n"


def picture(image: Image.Image, words: str) -> Markup:
    """The picture, within the page itself, and what it shows."""
    stored = BytesIO()
    image.save(stored, "PNG")
    source = "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode()
    shown = element("img", src=source, alt=words, width=image.width, height=image.height)
    return element("figure", scrolling("picture", shown), element("figcaption", words))
