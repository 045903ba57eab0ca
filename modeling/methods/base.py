"""Interfaces of recommendation methods at serving time, and of how their models are stored.

A method is a module of this package with a `Method` called ``METHOD``; the module's name is the method's kind. A loaded
model has one of two shapes. A `VectorMethod` maps a history to a vector, which is cached and used to search an index. A
`ListMethod` returns a ranked list. `base_ranking` defines rankers, which score given candidates.

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

from index import Catalog, ItemIndex
from modeling.artifact.folders import ArtifactError
from modeling.artifact.golden import AnyCase, GoldenCase
from modeling.artifact.manifest import MANIFEST, Manifest
from modeling.artifact.part_names import Part
from modeling.artifact.verified import Files
from modeling.backbone.loading import BackboneInfo
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
    """Base class of a method's own part of the manifest. Immutable; unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneRecord(BackboneInfo):
    """The backbone that the artifact was trained on; ``stored``: whether its weights are in ``backbone/``."""

    stored: bool


@dataclass(frozen=True)
class LoadContext:
    """Arguments of `Method.load`: the artifact's files, and the device and precision to load for.

    Attributes:
        files: of the artifact; the hash of each is checked when it is read.
        manifest: of the artifact.
        device: device of the networks, as PyTorch names it.
        precision: of language models; one of `Method.precisions`.
        sources: folders of backbones that the artifact refers to but does not contain.
        popular_N: all catalog rows, most popular first; None: read from the artifact when needed.
        mapped: leave tables with a row for every item in mapped files, if the method can and ``device`` is a processor.
    """

    files: Files
    manifest: Manifest
    device: str = "cpu"
    precision: Precision = "fp32"
    sources: Sources = field(default_factory=Sources)
    popular_N: NDArray[Any] | None = None
    mapped: bool = False

    @property
    def name(self) -> str:
        """Name of the artifact, for messages."""
        return self.files.name

    def popular(self) -> NDArray[np.int64]:
        """All catalog rows, most popular first [N]; raises `ArtifactError` if their number is not ``catalog_size``."""
        found_N, size = self.popular_N, self.manifest.catalog_size
        if found_N is None:
            found_N = Catalog.parse(self.files.read(CATALOG, LARGEST_CATALOG), f"{CATALOG} of {self.name}").popular()
        if len(found_N) != size:
            raise ArtifactError(f"{CATALOG} of {self.name} holds {len(found_N)} items, and {MANIFEST} expects {size}")
        return found_N


class HistoryEncoder(Protocol):
    """Maps histories to vectors in the item space; implemented by `modeling.encoder.user_encoder.UserEncoder`."""

    @property
    def history_limit(self) -> int:
        """Maximum number of items read, counted from the newest."""
        ...

    @property
    def exact(self) -> bool:
        """Whether vectors equal those of training, that is, no weights are rounded to a lower precision."""
        ...

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        """Free titles as items of a history; raises `CannotReadText` if the encoder reads item ids only."""
        ...

    def prepare(self, history: Sequence[int | FreeItem]) -> Prompt:
        """The prompt of one history, oldest item first."""
        ...

    def encode(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """User vectors [B, D]. The vector of a prompt does not depend on the rest of the batch."""
        ...

    def free_vectors(self, items: Sequence[FreeItem]) -> NDArray[np.float32]:
        """Item vectors [F, D] of free titles; raises `CannotReadText` if the item tower cannot encode text."""
        ...


class _Networks(Protocol):
    """Networks and title tokens of a loaded method of either shape; the defaults suit a method without networks."""

    reads: tuple[str, ...]
    """Accepted inputs: ``ids``, and ``text`` if titles outside the catalog can be read."""

    @property
    def networks(self) -> Mapping[Part, nn.Module]:
        """Modules that hold weights, by part; their memory is counted, and artifacts share equal weights."""
        return {}

    @property
    def bodies(self) -> Sequence[nn.Module]:
        """Language models without heads whose base weights may be shared with other artifacts (fp32 on a CPU)."""
        return ()

    @property
    def title_tokens(self) -> TitleTokens | None:
        """Tokens of the catalog's titles as read from `token_file`; None if the method stores none."""
        return None

    @title_tokens.setter
    def title_tokens(self, tokens: TitleTokens) -> None: ...

    @property
    def token_file(self) -> str:
        """File of the artifact that holds `title_tokens`; empty if there is none."""
        return ""

    def check_titles(self, titles: Sequence[str], name: str) -> None:
        """Encode a sample of the catalog's titles again and compare with the stored result, if the method reads text.

        Args:
            titles: of the catalog, in row order.
            name: of the artifact, for messages.

        Raises:
            ArtifactError: a title is encoded differently than in training.
        """
        return


class VectorMethod(_Networks, Protocol):
    """A loaded method that returns a user vector, with which an index is searched: one of item vectors, or the model's
    own (`Method.own_index`)."""

    @property
    def encoder(self) -> HistoryEncoder:
        """The user encoder."""
        ...

    @property
    def dim(self) -> int:
        """D, the width of a user vector."""
        ...

    def index(self) -> ItemIndex:
        """An exact index over the items in catalog row order."""
        ...

    def all_scores(self, users_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores [B, N] of all items for user vectors, as the exact index has them up to rounding."""
        ...

    def compile(self) -> str:
        """Switch the encoder to its inference-only forward; returns the reason if it cannot be used, else ``""``."""
        return ""

    def title_vectors(self, titles: Sequence[str]) -> NDArray[np.float32]:
        """Item vectors [F, D] of titles outside the catalog, in the space of the index.

        Raises:
            CannotReadText: this model makes no item vectors of text.
        """
        raise CannotReadText("it makes no item vectors of text")

    def record_launches(self, positions: int) -> str:
        """Record CUDA graphs for batches of up to ``positions`` positions; returns why that failed, else ``""``."""
        return ""


class ListMethod(GenerativeModel, _Networks, Protocol):
    """A loaded method that returns a ranked list: a `GenerativeModel`, or a `Ranker` (`base_ranking`), which scores
    given candidates without generating text."""


R = TypeVar("R", bound=Record)


class Method(ABC, Generic[R]):
    """Stores and loads models of one kind. The module of the kind holds one instance, ``METHOD``.

    Attributes:
        kind: name of the module.
        shape: of the loaded model: ``vector`` (`VectorMethod`) or ``list`` (`ListMethod`).
        own_index: whether the index of a `VectorMethod` is part of the model; else it is in the artifact's ``index/``.
        Record: class of the method's part of the manifest.
        Case: class of its golden histories.
    """

    kind: ClassVar[str]
    shape: ClassVar[Shape]
    own_index: ClassVar[bool] = False
    Record: type[R]
    Case: ClassVar[type[AnyCase]] = GoldenCase

    @abstractmethod
    def save(self, folder: Path, model: Any) -> R:
        """Write the files of a trained model, except catalog, index and golden histories.

        Args:
            folder: to write to; it holds the catalog and nothing else.
            model: result of the method's training.

        Returns:
            The method's part of the manifest.
        """

    @abstractmethod
    def load(self, record: R, context: LoadContext) -> Any:
        """The model, in evaluation mode: a `VectorMethod` or a `ListMethod`, as `shape` says.

        Raises:
            ArtifactError: a file is missing, or does not fit the record.
            PrecisionError: the precision cannot be computed here.
        """

    def check_sizes(self, files: Files, catalog_size: int, record: R) -> None:
        """Check every count in the record that memory or time depends on against the size of a file.

        Raises:
            ArtifactError: a file is too small for the stated count.
        """

    def mapped_bytes(self, files: Files, record: R) -> Mapping[str, int]:
        """Bytes of each file that stay on disk when a model is loaded with `LoadContext.mapped` on a processor.

        Raises:
            ArtifactError: a file is missing, or not in its format.
        """
        return {}

    def precisions(self, record: R) -> tuple[Precision, ...]:
        """Supported precisions of such a model; fp32 is always among them."""
        return PRECISIONS

    def tokenizer_sha256(self, model: Any) -> str | None:
        """SHA-256 of the tokenizer of a trained model; None without a tokenizer."""
        return None

    def backbone(self, record: R) -> BackboneRecord | None:
        """Record of the backbone, whether or not its weights are stored; None if the model has no such record."""
        return None
