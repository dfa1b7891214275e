"""Text becomes HTML in one place, and is escaped there."""

from html import unescape

import pytest

from train.base.markup import Markup, element, joined, table, text


@pytest.mark.parametrize("words", ["<b>", "\"'&", "&lt;", "שלום 🚶"])
def test_text_is_escaped_once_and_says_the_same(words):
    assert not set('<>"') & set(text(words))
    assert unescape(text(words)) == words
    assert text(text(words)) == text(words)


def test_control_characters_can_be_read():
    assert text("a\x00\n\ud800") == "a\\x00\\n\\ud800"


def test_elements_escape_words_and_keep_elements():
    inner = element("b", "<&>")
    outer = element("p", inner, "<i>", class_='"x"', id=None)
    assert outer == '<p class="&quot;x&quot;"><b>&lt;&amp;&gt;</b>&lt;i&gt;</p>'
    assert element("img", alt="") == '<img alt="">'
    assert isinstance(joined([inner, "<"]), Markup)
    assert joined([inner, "<"]).endswith("&lt;")


def test_a_table_without_rows_is_nothing_at_all():
    assert table("empty", ["a", "b"], []) == ""
