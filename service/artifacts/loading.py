"""An artifact as the service uses it: the model, the index and the catalog, opened and checked against each
other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from weakref import WeakSet

import numpy as np
import structlog
from numpy.typing import NDArray
from torch import nn

from index import Catalog, IndexFolderError, ItemIndex, parse_index
from index.base import FolderEntry, StoredIndex
from index.storage import ENTRY_FILE, INDEX_FILE, can_map, mapped_vectors, parse_entry
from modeling.artifact.folders import ArtifactError
from modeling.artifact.golden import GoldenCase, WrittenCase
from modeling.artifact.manifest import Manifest, one_line, open_files, read_manifest, refusing
from modeling.artifact.part_names import Part
from modeling.artifact.sizes import NUMBER
from modeling.artifact.verified import Files
from modeling.backbone.loading import BackboneError, resolve_source
from modeling.backbone.pretrained import bytes_of_layers
from modeling.encoder.build import Sources
from modeling.generation.api import GenerativeModel
from modeling.inference.int8_linear import Precision, PrecisionError
from modeling.inference.precision_choice import PrecisionAsked, settle
from modeling.inference.shared_base_weights import correct
from modeling.inference.torch_index import TorchIndex
from modeling.methods import Loaded as LoadedModel
from modeling.methods import load, method_of
from modeling.methods.base import HistoryEncoder, ListMethod, VectorMethod
from service.artifacts.facts import UNKNOWN, Facts, facts_of
from service.artifacts.memory import Pool, SharedBlock, share_catalog, share_index, share_title_tokens, share_weights
from service.errors import StartError

CATALOG, INDEX = "catalog.parquet", "index/"
# Files that are read and not kept: what they hold is in another part, or is folded into the weights.
NOT_KEPT = ("item_vectors.safetensors", "adapter/adapter_model.safetensors", "golden.json")
LONGEST_REFUSAL = 1000  # characters
FORCE = "set ANYO_PRECISION_FORCED=true to use it anyway"
LARGEST_CATALOG, LARGEST_INDEX = 4 << 30, 256 << 30  # bytes

Embed = Callable[[Sequence[str]], NDArray[np.float32]]

POOL = Pool()
BACKBONES: WeakSet[nn.Module] = WeakSet()  # of models that give vectors, on a processor in fp32, adapters merged
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Common fields of all loaded artifacts."""

    name: str
    version: str
    recipe: str
    reads: tuple[str, ...]
    catalog: Catalog
    precision: Precision = "fp32"
    pieces: tuple[SharedBlock, ...] = ()  # what it holds in memory
    files: frozenset[str] = frozenset()  # sha256 of its files and of its backbone
    facts: Facts = UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedArtifact(Loaded):
    """An artifact that gives vectors; row n of `catalog` and `index` is the same item."""

    encoder: HistoryEncoder
    index: ItemIndex
    golden: tuple[GoldenCase, ...]
    embed: Embed | None = None  # vectors [F, D] of titles that the catalog does not have; raises CannotReadText
    kind: Literal["dense"] = "dense"

    @property
    def reader(self) -> HistoryEncoder:
        """The part of the model that reads histories."""
        return self.encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedGenerative(Loaded):
    """An artifact that gives ranked lists; row n of `catalog` is the item that the model calls n."""

    model: GenerativeModel
    golden: tuple[WrittenCase, ...]
    kind: Literal["generative"] = "generative"

    @property
    def reader(self) -> GenerativeModel:
        """The part of the model that reads histories."""
        return self.model


AnyLoaded = LoadedArtifact | LoadedGenerative


@dataclass(frozen=True, slots=True, eq=False)
class IndexSource:
    """What an index of an artifact can be opened from: its files, its catalog, and user vectors [Q, D] of its golden
    histories."""

    files: Files
    manifest: Manifest
    catalog: Catalog
    users_QD: NDArray[np.float32]

    def entry(self) -> FolderEntry:
        """Return what index.json says; raises ArtifactError, IndexFolderError."""
        return parse_entry(self.files.read(INDEX + ENTRY_FILE), self.files.folder / INDEX / ENTRY_FILE)

    def hashes(self, *prefixes: str) -> tuple[tuple[str, str], ...]:
        """Return names and hashes of the files whose names begin so."""
        found = {name: sha256 for name, sha256 in self.manifest.files.items() if name.startswith(prefixes)}
        return tuple(sorted(found.items()))


OpenIndex = Callable[[IndexSource], SharedBlock]


def open_artifact(
    folder: Path,
    device: str,
    precision: PrecisionAsked = "fp32",
    batch_positions: int = 2048,
    share_backbone: bool = True,
    precision_forced: bool = False,
    download: bool = False,
    map_index: bool = False,
    open_index: OpenIndex | None = None,
) -> AnyLoaded:
    """Load the artifact in `folder`; raises StartError, one sentence. Takes seconds and blocks: use a thread.

    `precision` is that of language models: `auto` measures, and one that is slower than fp32 here is refused unless
    it is forced (modeling/inference/precision_choice.py). A GPU makes itself ready for dense batches of up to
    `batch_positions`. `share_backbone`: a generative model in fp32 on a processor may read the weights of a dense one
    that was tuned from the same backbone. `download`: a hub may be asked for a backbone that has a hash and is not on
    this machine. `map_index`: item vectors of an inverted file stay on disk, and on a processor all tables of a dense
    model that have a row for every item. `open_index` opens the index of a dense artifact instead of reading it here.
    """
    manifest: Manifest | None = None
    try:
        with refusing(folder.name):
            files, manifest = open_files(folder)
            taken = _precision(manifest, precision, device, precision_forced)
            if method_of(manifest, files.name)[0].shape == "list":
                return _open_generative(files, manifest, device, taken, share_backbone, download)
            opener = open_index or partial(_whole_index, map_index)
            dense = load(files, device=device, precision=taken, sources=Sources(download=download), mapped=map_index)
            return _open_dense(files, dense, device, batch_positions, opener)
    except (ArtifactError, PrecisionError) as error:
        now = version_on_disk(folder)
        if manifest is not None and now not in (None, manifest.version):
            raise StartError(
                f"artifact {folder.name} was replaced while it was being loaded (version {manifest.version}, now "
                f"{now}); load it again"
            ) from error
        raise StartError(one_line(error, LONGEST_REFUSAL)) from error


def _precision(manifest: Manifest, asked: PrecisionAsked, device: str, forced: bool) -> Precision:
    """Of one artifact; what its method does not compute in stays in fp32."""
    method, record = method_of(manifest, manifest.name)
    possible = method.precisions(record)
    if (asked == "auto" and "int8" not in possible) or (asked != "auto" and asked not in possible):
        return "fp32"
    found = settle(asked, device, forced=forced, force_with=FORCE)
    if found.milliseconds:
        log.info("precision", artifact=manifest.name, asked=asked, taken=found.taken, milliseconds=found.milliseconds)
    return found.taken


def _open_dense(
    files: Files, artifact: LoadedModel[VectorMethod], device: str, batch_positions: int, open_index: OpenIndex
) -> LoadedArtifact:
    manifest, model = artifact.manifest, artifact.model
    catalog_piece = _catalog_piece(files, manifest)
    own = method_of(manifest, files.name)[0].own_index
    index_piece = None
    if not own:
        users_QD = np.array([case.vector for case in artifact.golden], np.float32)
        index_piece = open_index(IndexSource(files, manifest, catalog_piece.value, users_QD))
    if reason := model.compile():
        log.info("plain_forward", artifact=files.name, reason=reason)
    pieces = (
        catalog_piece,
        *([index_piece] if index_piece else []),
        *_share_model(model, manifest, catalog_piece.value.titles),
    )
    if reason := model.record_launches(batch_positions):  # sharing moves weights: after it
        log.warning("launches_not_recorded", artifact=files.name, reason=reason)
    if device == "cpu" and artifact.precision == "fp32":
        BACKBONES.update(model.bodies)
    catalog = _looked_up(catalog_piece.value, model.reads)
    index = _index_of(model, index_piece, device)
    _check_sizes(files.name, manifest, len(catalog), index, model.dim)
    return LoadedArtifact(
        name=manifest.name,
        version=manifest.version,
        recipe=manifest.recipe,
        reads=model.reads,
        encoder=model.encoder,
        index=index,
        catalog=catalog,
        golden=tuple(artifact.golden),
        precision="fp32" if model.encoder.exact else artifact.precision,  # a small transformer is not rounded
        pieces=pieces,
        files=_files_of(manifest),
        embed=model.title_vectors if "text" in model.reads else None,
        facts=facts_of(manifest),
    )


def _check_sizes(name: str, manifest: Manifest, items: int, index: ItemIndex, dim: int) -> None:
    if not items == index.size == manifest.catalog_size:
        raise ArtifactError(
            f"artifact {name}: catalog.parquet holds {items} items and index/ {index.size}, "
            f"and manifest.json expects {manifest.catalog_size}"
        )
    if index.dim != dim:
        raise ArtifactError(f"artifact {name}: index/ has width {index.dim}, and manifest.json expects {dim}")


def _index_of(model: VectorMethod, piece: SharedBlock | None, device: str) -> ItemIndex:
    """The index that was opened, or the model's own, which is made of the arrays that are shared by now."""
    index: ItemIndex = model.index() if piece is None else piece.value
    if device != "cpu" and index.exact and isinstance(index, StoredIndex):
        # Beside the model: no way to the host and back between the two.
        return TorchIndex(index.vectors(), device)
    return index


def _whole_index(mapped: bool, source: IndexSource) -> SharedBlock:
    return share_index(POOL, source.hashes(INDEX), lambda: _read_index(source.files, mapped))


def only_vectors(source: IndexSource) -> SharedBlock:
    """Return exact search over the mapped item vectors, whatever the kind of the index; raises ArtifactError,
    IndexFolderError."""
    files = source.files
    found = mapped_vectors(source.entry(), files.mapped(INDEX + INDEX_FILE), files.folder / INDEX / INDEX_FILE)
    return SharedBlock(Part.INDEX, found, found.nbytes)


def _read_index(files: Files, mapped: bool) -> StoredIndex:
    folder, entry = files.folder / "index", files.read(INDEX + ENTRY_FILE)
    if mapped and can_map(parse_entry(entry, folder / ENTRY_FILE)):
        return parse_index(folder, entry, files.mapped(INDEX + INDEX_FILE))
    return parse_index(folder, entry, files.read(INDEX + INDEX_FILE, LARGEST_INDEX))


def _open_generative(
    files: Files, manifest: Manifest, device: str, precision: Precision, share_backbone: bool, download: bool
) -> LoadedGenerative:
    catalog_piece = _catalog_piece(files, manifest)
    catalog = catalog_piece.value
    sources = Sources(download=download)
    artifact = load(files, catalog.popular(), device=device, precision=precision, sources=sources)
    model: ListMethod = artifact.model
    _looked_up(catalog, model.reads)
    pieces = [catalog_piece, *_share_tokens(model, manifest)]
    model.check_titles(catalog.titles, files.name)
    if share_backbone and device == "cpu" and artifact.precision == "fp32":  # on a GPU maps are joined in one product
        _share_backbone(model.bodies)
    for kind, network in model.networks.items():
        pieces += share_weights(POOL, network, kind)
    return LoadedGenerative(
        name=manifest.name,
        version=manifest.version,
        recipe=manifest.recipe,
        reads=model.reads,
        model=model,
        catalog=catalog,
        golden=tuple(artifact.golden),
        precision=artifact.precision,
        pieces=tuple(pieces),
        files=_files_of(manifest),
        facts=facts_of(manifest),
    )


def _share_backbone(bodies: Sequence[nn.Module]) -> None:
    """Let bodies read the weights of a model that gives vectors from the same backbone; else one that of another."""
    others = list(BACKBONES)
    for body in bodies:
        if not any(correct(body, other) for other in others):
            others.append(body)


def _files_of(manifest: Manifest) -> frozenset[str]:
    method, record = method_of(manifest, manifest.name)
    backbone = method.backbone(record)
    return frozenset({*manifest.files.values(), *([backbone.sha256] if backbone and backbone.sha256 else [])})


def _catalog_piece(files: Files, manifest: Manifest) -> SharedBlock:
    def read() -> Catalog:
        content = files.read(CATALOG, LARGEST_CATALOG)
        return Catalog.parse(content, f"{CATALOG} of {files.name}", manifest.catalog_size)

    return share_catalog(POOL, _hashes(manifest, CATALOG), read)


def _looked_up(catalog: Catalog, reads: Sequence[str]) -> Catalog:
    """The catalog, ready to find items by their titles where those are read: now, not for the first request."""
    if "text" in reads:
        catalog.titled("")
    return catalog


def version_on_disk(folder: Path) -> str | None:
    """Return the version of the artifact in `folder`, or None where there is none that can be read."""
    try:
        return read_manifest(folder).version
    except (ArtifactError, OSError, ValueError, MemoryError):
        return None


def expected_bytes(
    folder: Path, known: frozenset[str], map_index: bool = False, device: str = "cpu", engine: bool = False
) -> int:
    """Return about how much memory the artifact in `folder` will need, from the sizes of its files.

    Files and backbones whose hash is in `known` are in memory already and count nothing. 0 where the folder holds no
    artifact: loading it will say so. With `map_index` what stays on disk counts nothing, with `engine` no index. An
    estimate before the fact; what it really takes is measured when it is loaded.
    """
    try:
        manifest = read_manifest(folder)
        files = Files(folder)
        sizes = {name: files.size(name) for name in manifest.files}
        method, record = method_of(manifest, files.name)
        if engine:
            sizes.pop(INDEX + INDEX_FILE, None)
        elif map_index and INDEX + ENTRY_FILE in sizes:
            entry = parse_entry(files.read(INDEX + ENTRY_FILE), files.folder / ENTRY_FILE)
            sizes[INDEX + INDEX_FILE] -= NUMBER * entry.size * entry.dim if can_map(entry) else 0
        if map_index and device == "cpu":
            sizes |= {name: sizes[name] - left for name, left in method.mapped_bytes(files, record).items()}
        backbone = method.backbone(record)
        if backbone is not None and not backbone.stored and backbone.sha256 not in known:
            place = Path(resolve_source(backbone.source))
            sizes |= {str(file): bytes_of_layers(file, backbone.layers) for file in place.glob("*.safetensors")}
    except (ArtifactError, BackboneError, IndexFolderError, OSError, KeyError, ValueError):
        return 0
    return sum(
        size
        for name, size in sizes.items()
        if name.endswith((".safetensors", ".parquet", ".faiss"))
        and name not in NOT_KEPT
        and manifest.files.get(name) not in known
    )


def _hashes(manifest: Manifest, prefix: str) -> tuple[tuple[str, str], ...]:
    """Return the names and hashes of the files that a part is read from."""
    found = {name: sha256 for name, sha256 in manifest.files.items() if name.startswith(prefix)}
    return tuple(sorted(found.items()))


def _share_model(model: VectorMethod, manifest: Manifest, titles: Sequence[str]) -> Iterator[SharedBlock]:
    model.check_titles(titles, manifest.name)  # brings in the network that reads titles, so that it is counted too
    for kind, network in model.networks.items():
        yield from share_weights(POOL, network, kind)
    yield from _share_tokens(model, manifest)


def _share_tokens(model: VectorMethod | ListMethod, manifest: Manifest) -> Iterator[SharedBlock]:
    if (tokens := model.title_tokens) is not None:
        piece = share_title_tokens(POOL, tokens, _hashes(manifest, model.token_file))
        model.title_tokens = piece.value
        yield piece
