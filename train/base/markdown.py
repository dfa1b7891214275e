"""Tables as text, for people and for Markdown."""

from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str] = ()) -> str:
    """A Markdown table; the first column and those in `words` are aligned left, the others right."""
    to_left = [i == 0 or heading in words for i, heading in enumerate(headings)]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    rule = ["-" * width if is_left else "-" * (width - 1) + ":" for is_left, width in zip(to_left, widths, strict=True)]
    lines = []
    for row in (headings, rule, *rows):
        columns = zip(row, to_left, widths, strict=True)
        cells = (cell.ljust(width) if is_left else cell.rjust(width) for cell, is_left, width in columns)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
