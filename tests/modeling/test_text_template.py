"""Templates of item texts: what is missing leaves no trace, and what cannot be filled is refused when it is written."""

from __future__ import annotations

import pytest

from modeling.spec import ItemsSpec
from modeling.text_template import LONGEST_TEXT, TemplateError, TextTemplate

WHOLE = {"title": "Lamp", "brand": "Oslo", "categories": "light, home", "price": "9.50"}


@pytest.mark.parametrize(
    ("template", "missing", "text"),
    [
        ("{title}. {brand}. {categories}. {price}", "", "Lamp. Oslo. light, home. 9.50"),
        ("{title}. {brand}. {categories}. {price}", "brand", "Lamp. light, home. 9.50"),
        ("{title}. {brand}. {categories}. {price}", "brand categories price", "Lamp"),
        ("{title} by {brand}, {price} euros", "brand", "Lamp, 9.50 euros"),
        ("item: {brand} {title} ({price})", "", "item: Oslo Lamp (9.50)"),
        ("item: {brand} {title} ({price})", "brand", "item: Lamp (9.50)"),
        ("{{{title}}}", "", "{Lamp}"),
    ],
)
def test_a_missing_cell_goes_with_the_text_before_it(template: str, missing: str, text: str) -> None:
    cells = WHOLE | dict.fromkeys(missing.split(), "")
    assert TextTemplate.parse(template).fill(cells) == text
    absent = {name: cell for name, cell in WHOLE.items() if name not in missing.split()}
    assert TextTemplate.parse(template).fill(absent) == text


def test_braces_in_a_cell_are_text_and_a_long_cell_is_cut() -> None:
    template = TextTemplate.parse("{title} {description}")
    assert template.fill({"title": "{brand}", "description": "{0}"}) == "{brand} {0}"
    assert len(template.fill({"title": "Lamp", "description": "x" * 2 * LONGEST_TEXT})) == LONGEST_TEXT


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("", "lacks {title}"),
        ("{brand}", "lacks {title}"),
        ("{title} {title}", "twice"),
        ("{title} {brand", "for braces"),
        ("{title.upper}", "only names of columns"),
        ("{title!r}", "only names of columns"),
        ("{title:>9}", "only names of columns"),
        ("{title} {}", "only names of columns"),
    ],
)
def test_what_is_no_template_is_refused_where_it_is_set(template: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        TextTemplate.parse(template)
    with pytest.raises(ValueError, match=reason):
        ItemsSpec(text_template=template)
