"""An artifact as the service uses it: the model, the index and the catalog, opened and checked against each
other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import structlog
from torch import nn

from index import Catalog, VectorIndex, parse_index
from index.storage import ENTRY_FILE, INDEX_FILE
from index.trie import TokenTrie
from modeling.artifact.manifest import (
    AnyManifest,
    CommonManifest,
    GenerativeManifest,
    Manifest,
    WrittenCase,
    one_line,
    open_files,
    read_any_manifest,
    refusing,
)
from modeling.artifact.part_names import Part
from modeling.artifact.verified import Files
from modeling.backbone.loading import BackboneError, resolve_source
from modeling.encoder.title_check import check_title_tokens, check_titles, sample_rows
from modeling.encoder.user_encoder import UserEncoder
from modeling.generation.api import GenerativeModel
from modeling.inference.encoder_forward import compile_encoder
from modeling.inference.int8_linear import Precision, PrecisionError
from modeling.inference.precision_choice import PrecisionAsked, settle
from modeling.inference.shared_base_weights import correct
from modeling.inference.torch_index import TorchIndex
from modeling.methods.dense import Artifact, ArtifactError, GoldenCase, load_artifact
from modeling.methods.generative import load_generative
from service.artifacts.memory import Pool, SharedBlock, share_catalog, share_index, share_title_tokens, share_weights
from service.errors import StartError

CATALOG, INDEX = "catalog.parquet", "index/"
TITLE_TOKENS, ITEM_TOKENS = "title_tokens.safetensors", "item_tokens.safetensors"
# Files that are read and not kept: what they hold is in another part, or is folded into the weights.
NOT_KEPT = ("item_vectors.safetensors", "adapter/adapter_model.safetensors", "golden.json")
LONGEST_REFUSAL = 1000  # characters
FORCE = "set ANYO_PRECISION_FORCED=true to use it anyway"
INDEX_FILES = (ENTRY_FILE, INDEX_FILE)
LARGEST_CATALOG, LARGEST_INDEX = 4 << 30, 256 << 30  # bytes

POOL = Pool()
BACKBONES: WeakSet[nn.Module] = WeakSet()  # of dense models on a processor in fp32, adapters merged
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedArtifact:
    """Everything one artifact brings; row n of `catalog` and `index` is the same item."""

    name: str
    version: str
    recipe: str
    reads: tuple[str, ...]
    encoder: UserEncoder
    index: VectorIndex
    catalog: Catalog
    golden: tuple[GoldenCase, ...]
    precision: Precision = "fp32"
    pieces: tuple[SharedBlock, ...] = ()  # what it holds in memory
    files: frozenset[str] = frozenset()  # sha256 of its files and of its backbone

    @property
    def reader(self) -> UserEncoder:
        """What reads histories."""
        return self.encoder


@dataclass(frozen=True, slots=True)
class LoadedGenerative:
    """Everything a generative artifact brings; row n of `catalog` is the item that the model calls n."""

    name: str
    version: str
    recipe: str
    reads: tuple[str, ...]
    model: GenerativeModel
    catalog: Catalog
    golden: tuple[WrittenCase, ...]
    precision: Precision = "fp32"
    pieces: tuple[SharedBlock, ...] = ()  # what it holds in memory
    files: frozenset[str] = frozenset()  # sha256 of its files and of its backbone

    @property
    def reader(self) -> GenerativeModel:
        """What reads histories."""
        return self.model


AnyLoaded = LoadedArtifact | LoadedGenerative


def open_artifact(
    folder: Path,
    device: str,
    precision: PrecisionAsked = "fp32",
    batch_positions: int = 2048,
    share_backbone: bool = True,
    precision_forced: bool = False,
    download: bool = False,
) -> AnyLoaded:
    """Load the artifact in `folder`; raises StartError, one sentence. Takes seconds and blocks: use a thread.

    `precision` is that of language models: `auto` measures, and one that is slower than fp32 here is refused unless
    it is forced (modeling/inference/precision_choice.py). A GPU makes itself ready for dense batches of up to
    `batch_positions`. `share_backbone`: a generative model in fp32 on a processor may read the weights of a dense one
    that was tuned from the same backbone. `download`: a hub may be asked for a backbone that has a hash and is not on
    this machine.
    """
    manifest: AnyManifest | None = None
    try:
        with refusing(folder.name):
            files, manifest = open_files(folder)
            taken = _precision(manifest, precision, device, precision_forced)
            if isinstance(manifest, GenerativeManifest):
                return _open_generative(files, manifest, device, taken, share_backbone)
            return _open_dense(files, manifest, device, taken, batch_positions, download)
    except (ArtifactError, PrecisionError) as error:
        now = version_on_disk(folder)
        if manifest is not None and now not in (None, manifest.version):
            raise StartError(
                f"artifact {folder.name} was replaced while it was being loaded (version {manifest.version}, now "
                f"{now}); load it again"
            ) from error
        raise StartError(one_line(error, LONGEST_REFUSAL)) from error


def _precision(manifest: AnyManifest, asked: PrecisionAsked, device: str, forced: bool) -> Precision:
    """Of one artifact; a small network of its own stays as it is, but for a dense one that is asked for in bf16."""
    own = manifest.names == "codes" if isinstance(manifest, GenerativeManifest) else manifest.model.backbone.own
    if own and (asked in ("auto", "int8") or isinstance(manifest, GenerativeManifest)):
        return "fp32"
    found = settle(asked, device, forced=forced, force_with=FORCE)
    if found.milliseconds:
        log.info("precision", artifact=manifest.name, asked=asked, taken=found.taken, milliseconds=found.milliseconds)
    return found.taken


def _open_dense(
    files: Files, manifest: Manifest, device: str, precision: Precision, batch_positions: int, download: bool
) -> LoadedArtifact:
    artifact = load_artifact(files, device=device, precision=precision, download=download)
    catalog_piece = _catalog_piece(files, manifest)
    index_piece = share_index(
        POOL,
        _hashes(manifest, INDEX),
        lambda: parse_index(files.folder / "index", *(files.read(INDEX + name, LARGEST_INDEX) for name in INDEX_FILES)),
    )
    if reason := compile_encoder(artifact.encoder):
        log.info("plain_forward", artifact=files.name, reason=reason)
    pieces = (catalog_piece, index_piece, *_share_model(artifact, catalog_piece.value.titles))
    if artifact.encoder.fast and (
        reason := artifact.encoder.fast.record(batch_positions)
    ):  # sharing moves weights: after it
        log.warning("launches_not_recorded", artifact=files.name, reason=reason)
    if device == "cpu" and precision == "fp32" and not manifest.model.backbone.own:
        BACKBONES.add(artifact.encoder.backbone)
    catalog, index = catalog_piece.value, index_piece.value
    if device != "cpu" and index.exact:  # beside the model: no way to the host and back between the two
        index = TorchIndex(index.vectors(), device)
    if not len(catalog) == index.size == manifest.catalog_size:
        raise ArtifactError(
            f"artifact {files.name}: catalog.parquet holds {len(catalog)} items and index/ {index.size}, "
            f"and manifest.json expects {manifest.catalog_size}"
        )
    if index.dim != manifest.dim:
        raise ArtifactError(
            f"artifact {files.name}: index/ has width {index.dim}, and manifest.json expects {manifest.dim}"
        )
    return LoadedArtifact(
        name=manifest.name,
        version=manifest.version,
        recipe=manifest.recipe,
        reads=tuple(manifest.capabilities.reads),
        encoder=artifact.encoder,
        index=index,
        catalog=catalog,
        golden=tuple(artifact.golden),
        precision="fp32" if artifact.encoder.exact else precision,  # a small transformer is not rounded
        pieces=pieces,
        files=frozenset({*manifest.files.values(), manifest.backbone.sha256 or ""}),
    )


def _open_generative(
    files: Files, manifest: GenerativeManifest, device: str, precision: Precision, share_backbone: bool
) -> LoadedGenerative:
    catalog_piece = _catalog_piece(files, manifest)
    catalog = catalog_piece.value
    artifact = load_generative(files, TokenTrie.build, catalog.popular(), device=device, precision=precision)
    tokens = share_title_tokens(POOL, artifact.model.names.tokens, _hashes(manifest, ITEM_TOKENS))
    artifact.model.names = replace(artifact.model.names, tokens=tokens.value)
    if "text" in artifact.model.reads:
        rows = sample_rows(catalog.titles)
        read = artifact.model.read_titles([catalog.titles[row] for row in rows])
        check_title_tokens(read, tokens.value, rows, files.name)
    networks = artifact.model.networks.items()
    if share_backbone and device == "cpu" and artifact.precision == "fp32":  # on a GPU maps are joined in one product
        _share_backbone(artifact.model.networks)
    return LoadedGenerative(
        name=manifest.name,
        version=manifest.version,
        recipe=manifest.recipe,
        reads=artifact.model.reads,
        model=artifact.model,
        catalog=catalog,
        golden=tuple(artifact.golden),
        precision=artifact.precision,
        pieces=(
            catalog_piece,
            tokens,
            *(piece for kind, network in networks for piece in share_weights(POOL, network, kind)),
        ),
        files=frozenset(manifest.files.values()),
    )


def _share_backbone(networks: Mapping[Part, nn.Module]) -> None:
    """Let the bodies of a writer read the weights of a dense model from the same backbone; else one that of another."""
    others = list(BACKBONES)
    bases = [cast(Any, networks[kind]).body for kind in (Part.TITLE_SPACE,) if kind in networks]
    for body in [*bases, cast(Any, networks[Part.WEIGHTS]).base_model]:
        if not any(correct(body, other) for other in others):
            others.append(body)


def _catalog_piece(files: Files, manifest: CommonManifest) -> SharedBlock:
    def read() -> Catalog:
        content = files.read(CATALOG, LARGEST_CATALOG)
        return Catalog.parse(content, f"{CATALOG} of {files.name}", manifest.catalog_size)

    return share_catalog(POOL, _hashes(manifest, CATALOG), read)


def version_on_disk(folder: Path) -> str | None:
    """Return the version of the artifact in `folder`, or None where there is none that can be read."""
    try:
        return read_any_manifest(folder).version
    except (ArtifactError, OSError, ValueError, MemoryError):
        return None


def expected_bytes(folder: Path, known: frozenset[str]) -> int:
    """Return about how much memory the artifact in `folder` will need, from the sizes of its files.

    Files and backbones whose hash is in `known` are in memory already and count nothing. 0 where the folder holds no
    artifact: loading it will say so. An estimate before the fact; what it really takes is measured when it is loaded.
    """
    try:
        manifest = read_any_manifest(folder)
        files = Files(folder)
        sizes = {name: files.size(name) for name in manifest.files}
        if isinstance(manifest, Manifest) and _needs_a_backbone(manifest, known):
            backbone = Path(resolve_source(manifest.backbone.source))
            sizes |= {str(file): file.stat().st_size for file in backbone.glob("*.safetensors")}
    except (ArtifactError, BackboneError, OSError, ValueError):
        return 0
    return sum(
        size
        for name, size in sizes.items()
        if name.endswith((".safetensors", ".parquet", ".faiss"))
        and name not in NOT_KEPT
        and manifest.files.get(name) not in known
    )


def _needs_a_backbone(manifest: Manifest, known: frozenset[str]) -> bool:
    """Whether weights from outside the folder are needed that are not in memory."""
    backbone = manifest.backbone
    return backbone.sha256 not in known and not backbone.stored and not manifest.model.backbone.own


def _hashes(manifest: CommonManifest, prefix: str) -> tuple[tuple[str, str], ...]:
    """Return the names and hashes of the files that a part is read from."""
    found = {name: sha256 for name, sha256 in manifest.files.items() if name.startswith(prefix)}
    return tuple(sorted(found.items()))


def _share_model(artifact: Artifact, titles: Sequence[str]) -> Iterator[SharedBlock]:
    encoder, files = artifact.encoder, _hashes(artifact.manifest, TITLE_TOKENS)
    if "text" in artifact.manifest.capabilities.reads:
        try:
            # brings in the network that reads titles, so that it is counted too
            check_titles(encoder, titles, artifact.folder.name)
        except ArtifactError:
            raise
        except ValueError as error:
            raise ArtifactError(
                f"artifact {artifact.folder.name} cannot read a free title: {one_line(error)}"
            ) from error
    yield from share_weights(POOL, encoder, Part.WEIGHTS)
    if encoder.text_model is not None:
        yield from share_weights(POOL, encoder.text_model, Part.TITLE_READER)
    if (tokens := encoder.prompts.titles) is not None:
        piece = share_title_tokens(POOL, tokens, files)
        encoder.prompts.titles = piece.value
        yield piece
