"""The dense method: a user encoder, the vectors of the items, and an index over them.

Nothing here is pickled. Loading checks every file's hash, every width, the item vectors and the golden histories, and
refuses with one sentence that names the file, what it holds and what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from index import FlatIndex
from modeling.artifact.folders import ArtifactError
from modeling.artifact.golden import GOLDEN, GoldenCase, GoldenTitle, tolerance_of, write_golden
from modeling.artifact.manifest import Manifest, one_line, read_manifest
from modeling.artifact.part_names import Part
from modeling.artifact.sizes import NUMBER, check_history, check_holds
from modeling.artifact.verified import Files, Folder
from modeling.encoder.build import Model, Sources
from modeling.encoder.history_state import FILE as HISTORY_STATE
from modeling.encoder.prompt import TitleTokens
from modeling.encoder.title_check import check_titles
from modeling.encoder.user_encoder import CannotReadText, UserEncoder, read_history
from modeling.inference.encoder_forward import compile_encoder
from modeling.inference.int8_linear import Precision
from modeling.inference.prepacked_linear import prepack_where_faster
from modeling.methods import Loaded, load, method_of
from modeling.methods import write_manifest as seal_model
from modeling.methods.base import BackboneRecord, HistoryEncoder, LoadContext, Method, VectorMethod
from modeling.methods.dense_files import (
    TITLE_TOKENS,
    DenseRecord,
    read_model,
    record_of,
    store_backbones,
    write_model,
)
from modeling.methods.dense_tables import ITEM_VECTORS, ITEMS, MAPPED, TEXT

__all__ = [
    "Artifact",
    "ArtifactError",
    "GoldenCase",
    "GoldenTitle",
    "Manifest",
    "check_golden",
    "load_artifact",
    "read_dense",
    "store_backbones",
    "tolerance_of",
    "write_golden",
    "write_manifest",
    "write_model",
]


class DenseModel(VectorMethod):
    """A `VectorMethod` over a trained `UserEncoder`.

    Args:
        encoder: in evaluation mode.
        item_vectors_ND: of the catalog; not to be written to.
        reads: see `VectorMethod`.
        text_samples: see `DenseRecord`.
    """

    def __init__(
        self,
        encoder: UserEncoder,
        item_vectors_ND: NDArray[np.float32],
        reads: Sequence[str],
        text_samples: Mapping[int, str],
    ) -> None:
        self._encoder, self._vectors_ND, self._text_samples = encoder, item_vectors_ND, text_samples
        self.reads = tuple(reads)

    @property
    def encoder(self) -> UserEncoder:
        """The user encoder."""
        return self._encoder

    @property
    def item_vectors_ND(self) -> NDArray[np.float32]:
        """Vectors of the items in row order."""
        return self._vectors_ND

    @property
    def dim(self) -> int:
        """See `VectorMethod.dim`."""
        return int(self._vectors_ND.shape[1])

    def index(self) -> FlatIndex:
        """See `VectorMethod.index`: over a copy of the item vectors."""
        return FlatIndex.build(self._vectors_ND)

    def all_scores(self, users_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `VectorMethod.all_scores`: inner products."""
        found_BN: NDArray[np.float32] = users_BD @ self._vectors_ND.T
        return found_BN

    @property
    def networks(self) -> Mapping[Part, nn.Module]:
        """The encoder with its item tower, and the network that reads free titles once one was read."""
        reader = self._encoder.text_model
        return {Part.WEIGHTS: self._encoder, **({} if reader is None else {Part.TITLE_READER: reader})}

    @property
    def bodies(self) -> Sequence[nn.Module]:
        """The language model."""
        return () if self._encoder.spec.backbone.own else (self._encoder.backbone,)

    @property
    def title_tokens(self) -> TitleTokens | None:
        """See `VectorMethod.title_tokens`; None if histories hold no title tokens."""
        return self._encoder.prompts.titles

    @title_tokens.setter
    def title_tokens(self, tokens: TitleTokens) -> None:
        self._encoder.prompts.titles = tokens

    @property
    def token_file(self) -> str:
        """See `VectorMethod.token_file`."""
        return TITLE_TOKENS

    def check_titles(self, titles: Sequence[str], name: str) -> None:
        """See `VectorMethod.check_titles`; loads the network that reads titles."""
        if "text" not in self.reads:
            return
        try:
            check_titles(self._encoder, titles, name, self._text_samples)
        except ArtifactError:
            raise
        except ValueError as error:
            raise ArtifactError(f"artifact {name} cannot read a free title: {one_line(error)}") from error
        reader = self._encoder.text_model
        if reader is not None and self._encoder.fast is not None:
            # in the same form as the encoder's linear maps, so that the service can share equal weights
            prepack_where_faster(reader)

    def compile(self) -> str:
        """See `VectorMethod.compile`."""
        return compile_encoder(self._encoder) or ""

    def title_vectors(self, titles: Sequence[str]) -> NDArray[np.float32]:
        """See `VectorMethod.title_vectors`."""
        try:
            return self._encoder.title_vectors(titles)
        except CannotReadText:
            raise
        except ValueError as error:
            raise CannotReadText(one_line(error)) from error

    def record_launches(self, positions: int) -> str:
        """See `VectorMethod.record_launches`."""
        return (self._encoder.fast.record(positions) if self._encoder.fast else "") or ""


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact: everything of the model. Catalog and index are opened by ``index`` from the same folder."""

    folder: Path
    manifest: Manifest
    record: DenseRecord
    encoder: UserEncoder
    item_vectors_ND: NDArray[np.float32]
    golden: list[GoldenCase]


def write_manifest(folder: Path, model: Model, **facts: Any) -> Manifest:
    """Hash every file and write ``manifest.json``; ``facts`` are the manifest's fields that the model does not know."""
    size = model.encoder.items.size
    return seal_model(folder, METHOD, model, record_of(folder, model), catalog_size=size, **facts)


def read_dense(folder: Folder) -> tuple[Manifest, DenseRecord]:
    """The manifest of a dense artifact alone, and its record; raises `ArtifactError` for one of another method."""
    manifest = read_manifest(folder)
    _require_dense(manifest, folder.name)
    return manifest, method_of(manifest, folder.name)[1]


def _require_dense(manifest: Manifest, name: str) -> None:
    if manifest.method.kind != "dense":
        raise ArtifactError(f"artifact {name} is no dense one ({manifest.recipe}), and a dense one is needed here")


def load_artifact(
    folder: Folder | str,
    *,
    device: str = "cpu",
    precision: Precision = "fp32",
    verify: bool = True,
    sources: Sources | None = None,
    download: bool = False,
) -> Artifact:
    """Rebuild a trained model from its folder, adapter merged, in evaluation mode.

    Every file is read once, and what is compared with the manifest's hashes is what is used.

    Args:
        folder: ``artifacts/<name>``, or its files.
        device: where the model runs.
        precision: of a language model; a recipe's own small transformer stays in fp32 where others have eight bits.
        verify: compare every file's hash, also of those that are not needed here.
        sources: folders to take backbones from that the artifact names and does not hold.
        download: whether a hub may be asked for a backbone that is named, is not on this machine, and has a hash.

    Raises:
        ArtifactError: anything is missing, altered, of another width or another schema version.
        PrecisionError: the precision cannot be computed here.
    """
    found: Loaded[DenseModel] = load(
        folder, shape="vector", device=device, precision=precision, verify=verify,
        sources=replace(sources or Sources(), download=download),
    )  # fmt: skip
    _require_dense(found.manifest, found.folder.name)
    model = found.model
    return Artifact(found.folder, found.manifest, found.record, model.encoder, model.item_vectors_ND, found.golden)


class Dense(Method[DenseRecord]):
    """Stores and loads a `DenseModel`."""

    kind, shape, Record = "dense", "vector", DenseRecord

    def save(self, folder: Path, model: Model) -> DenseRecord:
        """See `Method.save`: writes weights and item vectors."""
        write_model(model, folder)
        return record_of(folder, model)

    def load(self, record: DenseRecord, context: LoadContext) -> DenseModel:
        """See `load_artifact`."""
        encoder, vectors_ND = read_model(record, context)
        return DenseModel(encoder, vectors_ND, record.capabilities.reads, record.text_samples)

    def check_sizes(self, files: Files, catalog_size: int, record: DenseRecord) -> None:
        """See `Method.check_sizes`: item vectors, title vectors, the id table and the recipe's own transformer."""
        spec, size = record.model, catalog_size
        check_history(files, spec.history.limit)
        what = f"catalog_size {size} and dim {record.dim}"
        check_holds(files, ITEM_VECTORS, what, NUMBER * size * record.dim)
        if record.text_dim:
            what = f"catalog_size {size} and text_dim {record.text_dim}"
            check_holds(files, TEXT, what, NUMBER * size * record.text_dim)
        if spec.items.tower != "text":
            width = record.dim - spec.items.bias if spec.items.untied or spec.items.words else spec.items.dim
            what = f"catalog_size {size} and item vectors of width {width}"
            check_holds(files, ITEMS, what, NUMBER * size * width // 2)
        if record.history_state is not None:
            width = record.history_state.items.dim
            what = f"catalog_size {size} and an id model of width {width}"
            check_holds(files, HISTORY_STATE, what, NUMBER * size * width)
        if spec.backbone.own and spec.has_network:
            backbone = spec.backbone
            what = f"backbone.width {backbone.width} and backbone.depth {backbone.depth}"
            least = NUMBER * 6 * backbone.depth * backbone.width**2 // 2
            check_holds(files, "backbone/model.safetensors", what, least)

    def mapped_bytes(self, files: Files, record: DenseRecord) -> Mapping[str, int]:
        """See `Method.mapped_bytes`: the item vectors, and the tables that a history is looked up in."""
        found = {ITEM_VECTORS: files.size(ITEM_VECTORS)}
        for name, tables in MAPPED.items():
            if name in files:
                found[name] = sum(size for key, size in files.tensor_sizes(name).items() if key in tables)
        return found

    def precisions(self, record: DenseRecord) -> tuple[Precision, ...]:
        """See `Method.precisions`: int8 for language models only, fp32 alone without a network."""
        if not record.model.has_network:
            return ("fp32",)
        return ("fp32", "bf16") if record.model.backbone.own else ("fp32", "bf16", "int8")

    def tokenizer_sha256(self, model: Model) -> str | None:
        """See `Method.tokenizer_sha256`: of the language model's tokenizer."""
        return model.tokenizer_sha256

    def backbone(self, record: DenseRecord) -> BackboneRecord | None:
        """See `Method.backbone`: the language model."""
        return None if record.model.backbone.own else record.backbone


METHOD = Dense()


def check_golden(artifact: Artifact, histories: Sequence[Sequence[int | str]]) -> None:
    """Encode the golden histories (given as catalog rows and free titles) and compare with the stored vectors.

    Raises:
        ArtifactError: a vector differs by more than `tolerance_of` in an element.
    """
    check_vectors(artifact.encoder, artifact.golden, histories, artifact.folder.name)


def check_vectors(
    encoder: HistoryEncoder, golden: Sequence[GoldenCase], histories: Sequence[Sequence[int | str]], name: str
) -> None:
    """As `check_golden`, for any encoder; ``name`` is the artifact's, for messages."""
    prompts = [encoder.prepare(read_history(history, encoder.read_titles)) for history in histories]
    for case, vector in zip(golden, encoder.encode(prompts) if prompts else (), strict=True):
        stored = np.asarray(case.vector, np.float32)
        difference = float(np.abs(vector - stored).max())
        if encoder.exact and not difference <= tolerance_of(case):
            raise ArtifactError(
                f"{GOLDEN} of {name}: the vector of history {case.history[-3:]} differs by {difference:.2g}, and at "
                f"most {tolerance_of(case)} is allowed: this is not the model that was trained"
            )
