"""Recommendation methods that can be served. Each module without an underscore in its name is a method; its name is the
method's kind. ``<kind>_<part>.py`` holds helpers of that method."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from numpy.typing import NDArray

from modeling.artifact.folders import ArtifactError
from modeling.artifact.golden import AnyCase, read_golden, write_golden
from modeling.artifact.manifest import (
    MANIFEST,
    SCHEMA,
    Manifest,
    MethodRecord,
    open_files,
    refusing,
    seal,
    validated,
)
from modeling.artifact.sizes import check_catalog_size
from modeling.artifact.verified import Folder
from modeling.backbone.sources import neutral_recipe
from modeling.encoder.build import Sources
from modeling.inference.int8_linear import Precision
from modeling.methods.base import LoadContext, Method, Record, Shape

M = TypeVar("M")
NOT_KINDS = ("base",)
CALLED = {"vector": "dense", "list": "generative"}
"""Name of each shape in the API."""


@dataclass(frozen=True)
class Loaded(Generic[M]):
    """A loaded artifact. Its catalog and index are opened by ``index`` from the same folder.

    Attributes:
        folder, manifest: of the artifact.
        record: the method's own part of the manifest, an instance of `Method.Record`.
        model: a `VectorMethod` or a `ListMethod`.
        golden: histories stored with the answers the model gave after training; it must reproduce them.
        precision: numeric precision of the language models.
    """

    folder: Path
    manifest: Manifest
    record: Any
    model: M
    golden: list[Any]
    precision: Precision = "fp32"


def method_names() -> list[str]:
    """Kinds of all methods, in alphabetical order."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__)
        if "_" not in module.name and module.name not in NOT_KINDS
    )  # fmt: skip


def get_method(kind: str) -> Method[Any]:
    """The method of a kind; raises `ArtifactError` where there is none."""
    if kind not in (known := method_names()):
        raise ArtifactError(f"method {kind[:40]!r} not found; known methods are {', '.join(known)}")
    return cast(Method[Any], importlib.import_module(f"{__name__}.{kind}").METHOD)


def method_of(manifest: Manifest, name: str) -> tuple[Method[Any], Any]:
    """The method of an artifact called ``name``, and its record.

    Raises:
        ArtifactError: there is no such method, or the record lacks a field, or has a wrong one.
    """
    try:
        method = get_method(manifest.method.kind)
    except ArtifactError as error:
        raise ArtifactError(f"{MANIFEST} of {name}: {error}") from error
    record: Record = validated(method.Record, manifest.method.record, f"{MANIFEST} of {name}", "method.record.")
    return method, record


def load(
    folder: Folder | str,
    popular_N: NDArray[Any] | None = None,
    *,
    shape: Shape | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    verify: bool = True,
    sources: Sources | None = None,
    mapped: bool = False,
) -> Loaded[Any]:
    """Rebuild a model from its folder, in evaluation mode. Every file is read once.

    Args:
        folder: ``artifacts/<name>``, or its files.
        popular_N: all rows of the catalog, most popular first; None: read from the artifact where it is needed.
        shape: refuse an artifact of another shape.
        device: where networks run.
        precision: of language models; fp32 is used where the method does not support it.
        verify: compare the hash of every file, including files that are not read here.
        sources: folders of backbones that the artifact refers to but does not contain.
        mapped: leave tables of items on disk, see `LoadContext.mapped`. Nothing may be written to the files as long as
            the model is used; folders may be replaced.

    Raises:
        ArtifactError: anything is missing, altered, of another shape, width or schema version.
        PrecisionError: the precision cannot be computed here.
    """
    folder = Path(folder) if isinstance(folder, str) else folder
    with refusing(folder.name):
        files, manifest = open_files(folder, verify=verify)
        method, record = method_of(manifest, files.name)
        if shape not in (None, method.shape):
            raise ArtifactError(
                f"artifact {files.name} is {CALLED[method.shape]} ({manifest.recipe}), and a {CALLED[str(shape)]} one "
                "is needed here"
            )
        precision = precision if precision in method.precisions(record) else "fp32"
        context = LoadContext(files, manifest, device, precision, sources or Sources(), popular_N, mapped)
        loaded = _read(context, method, record)
        if verify:
            files.verify_rest()
    return loaded


def save(folder: Path, method: Method[Any], model: Any, golden: Sequence[AnyCase], **facts: Any) -> Manifest:
    """Write a model and its golden histories beside its catalog and seal the folder.

    Args:
        folder: holds the catalog, and the index of a `VectorMethod`.
        method: of the model.
        model: what the method's training made.
        golden: histories and their answers.
        facts: the remaining fields of the manifest, by name.
    """
    write_golden(folder, golden)
    return write_manifest(folder, method, model, method.save(folder, model), **facts)


def write_manifest(folder: Path, method: Method[Any], model: Any, record: Record, **facts: Any) -> Manifest:
    """Hash every file of a folder that a model was written to, and write its manifest; ``facts``: see `save`."""
    facts["recipe_data"] = neutral_recipe(facts["recipe_data"])
    manifest = Manifest(
        schema_version=SCHEMA,
        version="",
        tokenizer_sha256=method.tokenizer_sha256(model),
        method=MethodRecord(kind=method.kind, record=record.model_dump(mode="json")),
        files={},
        **facts,
    )
    return seal(folder, manifest)


def _read(context: LoadContext, method: Method[Any], record: Any) -> Loaded[Any]:
    files, manifest = context.files, context.manifest
    check_catalog_size(files, manifest.catalog_size)
    method.check_sizes(files, manifest.catalog_size, record)
    case: type[Any] = method.Case
    golden: list[AnyCase] = read_golden(files, case)
    model = method.load(record, context)
    return Loaded(files.folder, manifest, record, model, golden, context.precision)
