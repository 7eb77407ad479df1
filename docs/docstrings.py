"""Let mkdocstrings show docstrings as they are meant: an extension of griffe, which reads them.

Docstrings here are Google style, but their examples and tables also stand outside an "Examples:" section, where
`help()` and doctest see them well and Markdown does not. Before griffe parses a docstring, this puts runs of `>>>` and
plain-text tables in code fences, and turns Sphinx roles (:func:`convert`) into code (`convert`).
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:py:)?(?:attr|class|data|exc|func|meth|mod):`~?([^`]+)`")

SECTION = re.compile(r"^([ ]*)Examples?:(\n[ ]*>>> )")


def to_markdown(text: str) -> str:
    """A docstring with its examples and tables fenced, and its roles as code; fenced docstrings stay as they are."""
    if re.search(r"^\s*```", text, re.MULTILINE):
        return text
    lines: list[str] = []
    paragraphs = re.split(r"\n(?:[ \t]*\n)+", ROLE.sub(r"`\1`", text))
    for paragraph in paragraphs:
        if SECTION.match(paragraph):  # griffe knows what to do with it under this name, as long as it is in one piece
            lines.append(SECTION.sub(r"\1Examples:\2", paragraph))
            continue
        first = re.search(r"^([ ]*)(>>> |={3,} +=)", paragraph, re.MULTILINE)
        if first is None:
            lines.append(re.sub(r"::$", ":", paragraph))
            continue
        before, block = paragraph[: first.start()].rstrip("\n"), paragraph[first.start() :]
        language, indent = "pycon" if first[2].startswith(">>>") else "text", first[1]
        lines += [before] if before else []
        lines.append(f"{indent}```{language}\n{block}\n{indent}```")
    return "\n\n".join(lines)


class Docstrings(griffe.Extension):
    """Applies `to_markdown` to every docstring, once, before anything parses it."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for each object it has read."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
