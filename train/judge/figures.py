"""Figures as people read them. A figure is {"mean", "low", "high", "seeds"}; accuracies and gains are fractions."""

import math
import re

NONE, MINUS, SPACE = "\u2013", "\u2212", "\u00a0"  # what stands for no number; as wide as a plus; where no line ends


def number(value: float | None, form: str = ".3g") -> str:
    """The number in this format, with a true minus sign; a dash for what is missing or not finite."""
    if value is None or not math.isfinite(value):
        return NONE
    written = format(value, form)
    return written.lstrip("+-") if float(written) == 0 else written.replace("-", MINUS)


def percent(share: float | None) -> str:
    """A fraction in percent: "93.1%"."""
    written = number(None if share is None else 100 * share, ".1f")
    return written if written == NONE else f"{written}%"


def interval(figure: dict) -> str:
    """A figure that is an accuracy: "93.1% [92.0, 94.2]"."""
    return f"{percent(figure['mean'])}{SPACE}{_brackets(figure, '.1f')}"


def points(gain: float) -> str:
    """A gain in points, with its sign: "+2.3"."""
    return number(100 * gain, "+.1f")


def gain(figure: dict | None, unit: str = "") -> str:
    """A figure that is a gain, in points: "+2.3 [+1.0, +3.6]", or with " points" behind the mean."""
    return f"{points(figure['mean'])}{unit}{SPACE}{_brackets(figure, '+.1f')}" if figure else NONE


def of(count: int, total: int) -> str:
    """A count and the whole that it is part of: "3 of 620 (0.5%)"."""
    share = "under 0.1%" if 0 < count / total < 0.0005 else percent(count / total)
    return f"{count:,} of {total:,} ({share})"


def sentence(words: str) -> str:
    """The words as a sentence: a capital in front, a full stop behind, true minus signs before numbers."""
    words = re.sub(r"(?<![\w.])-(?=\d)", MINUS, words)
    return capital(words) + ("" if words.endswith((".", "!", "?")) else ".")


def capital(words: str) -> str:
    """The words with a capital in front."""
    return words[:1].upper() + words[1:]


def _brackets(figure: dict, form: str) -> str:
    return f"[{number(100 * figure['low'], form)},{SPACE}{number(100 * figure['high'], form)}]"
