"""The spec of any kind of index: a union over `index/kinds`, told apart by its field ``kind``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from index.base import IndexSpec
from index.kinds import index_class, kind_names

if TYPE_CHECKING:
    AnyIndexSpec = IndexSpec
else:
    _SPECS = [index_class(kind).Spec for kind in kind_names()]
    AnyIndexSpec = Annotated[reduce(or_, _SPECS), Field(discriminator="kind")] if len(_SPECS) > 1 else _SPECS[0]


def spec_of(kind: str, parameters: Mapping[str, Any] | None = None) -> IndexSpec:
    """The spec of a kind with the parameters that are given and the usual ones for the rest.

    Raises:
        ValueError: no such kind or parameter, or a value that is not allowed; one sentence.
    """
    spec_class = index_class(kind).Spec
    try:
        return spec_class(**{**(parameters or {}), "kind": kind})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = ", ".join(field for field in spec_class.model_fields if field != "kind") or "none"
            raise ValueError(f"index kind {kind!r} has no parameter {name[:40]!r}; it has {known}") from None
        raise ValueError(f"index kind {kind!r}: {name[:40]}: {first['msg']} (given {first['input']!r:.40})") from None


def changed(spec: IndexSpec, values: Mapping[str, Any]) -> IndexSpec:
    """A spec with other values; another ``kind`` brings its own usual parameters. Raises ValueError, one sentence."""
    kind = str(values.get("kind", spec.kind))
    kept = spec.parameters if kind == spec.kind else {}
    return spec_of(kind, kept | {name: value for name, value in values.items() if name != "kind"})
