"""What a method of recommendation is when it is served, and how it is stored.

A method is a module of this package with a `Method` called ``METHOD``; the name of the module is its kind. What it
loads has one of two shapes. A `VectorMethod` gives a vector for a history: vectors are cached, and an index is searched
with them. A `ListMethod` gives a ranked list. `base_ranking` has rankers, which score given candidates.

Shape legend: B histories, D item dimension, N items, K items of an answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import nn

from index import Catalog
from modeling.artifact.folders import ArtifactError
from modeling.artifact.golden import AnyCase, GoldenCase
from modeling.artifact.manifest import MANIFEST, Manifest
from modeling.artifact.part_names import Part
from modeling.artifact.verified import Files
from modeling.encoder.build import Sources
from modeling.encoder.prompt import FreeItem, Prompt, TitleTokens
from modeling.encoder.user_encoder import CannotReadText
from modeling.generation.api import GenerativeModel
from modeling.inference.int8_linear import Precision

Shape = Literal["vector", "list"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
CATALOG = "catalog.parquet"
LARGEST_CATALOG = 4 << 30
"""Bytes of ``catalog.parquet``."""


class Record(BaseModel):
    """What a method writes down of itself in the manifest; a field that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneRecord(Record):
    """Which backbone the artifact was trained on; ``stored`` says whether its weights are in ``backbone/``."""

    source: str
    revision: str | None
    architecture: str
    sha256: str | None
    dtype: str
    hidden_size: int
    layers: int
    vocabulary: int
    lm_head: Literal["tied", "untied", "none"]
    stored: bool


@dataclass(frozen=True)
class LoadContext:
    """Where a method is loaded from, and for what.

    Attributes:
        files: of the artifact, each compared with its hash when it is read.
        manifest: of the artifact.
        device: where networks run.
        precision: of language models; one of `Method.precisions`.
        sources: folders to take backbones from that the artifact names and does not hold.
        popular_N: all rows of the catalog, most popular first; None: read from the artifact where it is needed.
    """

    files: Files
    manifest: Manifest
    device: str = "cpu"
    precision: Precision = "fp32"
    sources: Sources = field(default_factory=Sources)
    popular_N: NDArray[Any] | None = None

    @property
    def name(self) -> str:
        """Of the artifact, for messages."""
        return self.files.name

    def popular(self) -> NDArray[np.int64]:
        """All rows of the catalog, most popular first [N]; raises `ArtifactError` where their number is another."""
        found_N, size = self.popular_N, self.manifest.catalog_size
        if found_N is None:
            found_N = Catalog.parse(self.files.read(CATALOG, LARGEST_CATALOG), f"{CATALOG} of {self.name}").popular()
        if len(found_N) != size:
            raise ArtifactError(f"{CATALOG} of {self.name} holds {len(found_N)} items, and {MANIFEST} expects {size}")
        return found_N


class HistoryEncoder(Protocol):
    """Histories in, vectors in the item space out; `modeling.encoder.user_encoder.UserEncoder` is one."""

    @property
    def history_limit(self) -> int:
        """Newest items that are read."""
        ...

    @property
    def exact(self) -> bool:
        """Whether vectors are those of training: nothing is rounded to fewer bits."""
        ...

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        """Free text as items of a history; raises `CannotReadText` where ids only are read."""
        ...

    def prepare(self, history: Sequence[int | FreeItem]) -> Prompt:
        """The prompt of one history, oldest item first."""
        ...

    def encode(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """User vectors [B, D]; a prompt alone gives the same vector as in any batch."""
        ...

    def free_vectors(self, items: Sequence[FreeItem]) -> NDArray[np.float32]:
        """Item vectors [F, D] of free titles; raises `CannotReadText` where the item tower has none for them."""
        ...


class _Networks(Protocol):
    """What both shapes say of the memory they take; a method without networks inherits all of it."""

    reads: tuple[str, ...]
    """``ids``, and ``text`` where titles that the catalog does not know can be read."""

    @property
    def networks(self) -> Mapping[Part, nn.Module]:
        """What holds weights, by what it is for: counted, and shared with artifacts that hold the same."""
        return {}

    @property
    def bodies(self) -> Sequence[nn.Module]:
        """Bodies of language models that may share base weights with those of other artifacts, fp32 on a processor."""
        return ()

    @property
    def title_tokens(self) -> TitleTokens | None:
        """Tokens of the catalog's titles as read from the file `token_file`; None where there are none."""
        return None

    @title_tokens.setter
    def title_tokens(self, tokens: TitleTokens) -> None: ...

    @property
    def token_file(self) -> str:
        """The file of the artifact that `title_tokens` were read from."""
        return ""

    def check_titles(self, titles: Sequence[str], name: str) -> None:
        """Read a few titles of the catalog again, where the method reads text, and compare with what is stored.

        Args:
            titles: of the catalog, in row order.
            name: of the artifact, for messages.

        Raises:
            ArtifactError: they come out otherwise than in training.
        """
        return


class VectorMethod(_Networks, Protocol):
    """A loaded method that gives a user vector, with which an index of item vectors is searched."""

    @property
    def encoder(self) -> HistoryEncoder:
        """What makes vectors of histories."""
        ...

    @property
    def item_vectors_ND(self) -> NDArray[np.float32]:
        """Vectors of the items in row order."""
        ...

    def compile(self) -> str:
        """Make the encoder ready for serving; the reason where it stays as it is, else an empty text."""
        return ""

    def title_vectors(self, titles: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [F, D] of items that the catalog does not have, made of their titles, as ``item_vectors_ND`` are.

        Raises:
            CannotReadText: this model makes no item vectors of text.
        """
        raise CannotReadText("it makes no item vectors of text")

    def record_launches(self, positions: int) -> str:
        """Record what a GPU does for batches of up to so many positions; the reason where that fails."""
        return ""


class ListMethod(GenerativeModel, _Networks, Protocol):
    """A loaded method that gives a ranked list: a `GenerativeModel`, or a `Ranker` (`base_ranking`), which writes
    nothing and scores given candidates."""


R = TypeVar("R", bound=Record)


class Method(ABC, Generic[R]):
    """How models of one kind are stored and loaded. One value of it, ``METHOD``, stands in the module of the kind.

    Attributes:
        kind: the name of the module.
        shape: of what is loaded: ``vector`` (`VectorMethod`) or ``list`` (`ListMethod`).
        Record: class of what the manifest holds of the method.
        Case: class of its golden histories.
    """

    kind: ClassVar[str]
    shape: ClassVar[Shape]
    Record: type[R]
    Case: ClassVar[type[AnyCase]] = GoldenCase

    @abstractmethod
    def save(self, folder: Path, model: Any) -> R:
        """Write the files of a trained model, catalog, index and golden histories not among them.

        Args:
            folder: to write to; empty but for the catalog.
            model: what the method's training makes.

        Returns:
            What the manifest is to hold.
        """

    @abstractmethod
    def load(self, record: R, context: LoadContext) -> Any:
        """The model, in evaluation mode: a `VectorMethod` or a `ListMethod`, as `shape` says.

        Raises:
            ArtifactError: a file is missing, or does not fit the record.
            PrecisionError: the precision cannot be computed here.
        """

    def check_sizes(self, files: Files, catalog_size: int, record: R) -> None:
        """Hold every count in the record that memory or time grows with against the size of a file.

        Raises:
            ArtifactError: one is not borne out.
        """

    def precisions(self, record: R) -> tuple[Precision, ...]:
        """What such a model may be computed in; fp32 always."""
        return PRECISIONS

    def tokenizer_sha256(self, model: Any) -> str | None:
        """Of the tokenizer of a trained model; None without one."""
        return None

    def backbone(self, record: R) -> BackboneRecord | None:
        """The backbone that is named by a hash, wherever its weights lie; None where there is none."""
        return None
