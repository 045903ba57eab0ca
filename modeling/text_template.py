"""The text of an item that a text tower reads: a template over the columns of the items file."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass

TITLE_ALONE = "{title}"
LONGEST_TEXT = 8192
"""Characters of an item's text; a description that goes on is cut, and a model reads fewer tokens anyway."""


class TemplateError(ValueError):
    """A template that cannot be read; the message says what is allowed."""


@dataclass(frozen=True)
class TextTemplate:
    """A template such as ``"{title}. {brand}. {price}"``, taken apart.

    A placeholder names a column. Where an item has nothing in that column, the placeholder goes together with the text
    between it and the one before it: ``"{title} by {brand}, {price}"`` becomes ``"Lamp, 9.50"`` for a lamp without a
    brand. Between the beginning and the first placeholder that is filled only the template's own beginning stands.

    Attributes:
        start: text before the first placeholder.
        parts: text between a placeholder and the one before it (nothing before the first), and the column.
        end: text after the last placeholder.
    """

    start: str
    parts: tuple[tuple[str, str], ...]
    end: str

    @classmethod
    def parse(cls, template: str) -> TextTemplate:
        """Take a template apart.

        Raises:
            TemplateError: a brace has no partner, a placeholder is no bare column name or stands twice, or ``{title}``,
                which every item has, is not among them.
        """
        try:
            found = list(string.Formatter().parse(template))
        except ValueError as error:
            raise TemplateError(f"template {template!r}: {error}; write {{{{ and }}}} for braces") from None
        before, parts = "", list[tuple[str, str]]()
        for literal, name, form, conversion in found:
            before += literal
            if name is None:
                continue
            if not name.isidentifier() or form or conversion:
                raise TemplateError(
                    f"template {template!r} holds {{{name}}}: only names of columns may stand in braces"
                )
            if name in [known for _, known in parts]:
                raise TemplateError(f"template {template!r} holds {{{name}}} twice")
            parts.append((before, name))
            before = ""
        if "title" not in [name for _, name in parts]:
            raise TemplateError(f"template {template!r} lacks {{title}}, the one text that every item has")
        start = parts[0][0]
        return cls(start, (("", parts[0][1]), *parts[1:]), before)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads, in its order."""
        return tuple(name for _, name in self.parts)

    def fill(self, cells: Mapping[str, str]) -> str:
        """The text of one item from its cells by column; one that is absent or empty holds nothing."""
        text = ""
        for before, name in self.parts:
            if cell := cells.get(name):
                text += before + cell if text else cell
        return (self.start + text + self.end)[:LONGEST_TEXT]
