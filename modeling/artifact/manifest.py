"""``manifest.json`` and the other facts of an artifact that can be read without loading a model."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch.nn import Module

from modeling.artifact.folders import MOST_FILES, FolderError, files_in
from modeling.artifact.folders import ArtifactError as ArtifactError
from modeling.artifact.folders import one_line as one_line
from modeling.artifact.plain_json import JsonError, parse
from modeling.artifact.verified import Files, Folder, files_of
from modeling.inference.int8_linear import PrecisionError
from modeling.methods.p5_prompts import Family
from modeling.spec import Capabilities, ModelSpec, VectorPosition

SCHEMA = 2
"""Of what is written. Since 2 golden histories may hold free titles, and local folders are not named by their paths."""
READABLE = (1, 2)
LARGEST_MANIFEST = 64 << 20
MANIFEST = "manifest.json"
GOLDEN = "golden.json"

_BLANK = "0" * 64


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


LONGEST_LABEL = 255


def _label(text: str) -> str:
    if not text.isprintable() or len(text) > LONGEST_LABEL:
        raise ValueError(f"at most {LONGEST_LABEL} printable characters are allowed, and it is {text[:40]!a}")
    return text


Label = Annotated[str, AfterValidator(_label)]
"""What is shown on consoles, in logs and as a label of metrics."""


def _file_name(name: str) -> str:
    """A manifest from elsewhere must not name a file outside its folder."""
    path = PurePosixPath(name)
    odd = path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable() or str(path) != name
    if odd or name == MANIFEST or len(name) > LONGEST_LABEL:
        raise ValueError(f"{name[:80]!a} is not a plain path inside the artifact")
    return name


FileName = Annotated[str, AfterValidator(_file_name)]


class BackboneRecord(_Data):
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


class CommonManifest(_Data):
    """What every ``manifest.json`` says. ``files`` maps every other file to its sha256; ``version`` hashes them all.

    ``checksum`` is the sha256 of this very file with the checksum itself blanked (see ``sealed``): the one file that no
    other names. It shows damage, not intent: whoever changes the file on purpose can seal it again.
    """

    checksum: str = ""
    schema_version: int
    name: Label
    version: Label
    recipe: Label
    recipe_data: dict[str, Any]
    tokenizer_sha256: str | None
    catalog_size: int
    data: Label
    data_sha256: str
    split: str
    fitted_on: Literal["train", "train+validation"]
    metrics: dict[str, float]
    training: dict[str, Any]
    commit: str | None
    files: Annotated[dict[FileName, str], Field(max_length=MOST_FILES)]


class Manifest(CommonManifest):
    """Of a dense artifact: a user encoder and the vectors of the items."""

    kind: Literal["dense"] = "dense"
    model: ModelSpec
    backbone: BackboneRecord
    instruction_tokens: list[int]
    dim: int
    text_dim: int
    normalize: bool
    temperature: float
    capabilities: Capabilities


class GroundingRecord(_Data):
    """How a freely written title becomes items: see `modeling.methods.bigrec`.

    Attributes:
        instruction: of the prompt.
        popularity_exponent, collaborative_exponent: gamma of the two weights.
        collaborative: whether ``parts/collaborative`` holds a dense artifact of the same catalog.
    """

    instruction: str
    popularity_exponent: float
    collaborative_exponent: float
    collaborative: bool


class TaskRecord(_Data):
    """How a history is put to the model as a prompt: see `modeling.methods.p5`.

    Attributes:
        families: of tasks, that it was trained on.
        user_sizes: of the pieces of a user's number.
        ratings: values that a rating may have, ascending.
        whole_words: whether it reads the vectors of whole words, ``tasks/whole_words.safetensors``.
    """

    families: tuple[Family, ...]
    user_sizes: tuple[int, ...]
    ratings: tuple[float, ...]
    whole_words: bool


class ChoiceRecord(_Data):
    """How an item is chosen among candidates: see `modeling.methods.llara`.

    Attributes:
        instruction: of the prompt.
        candidates: how many of them a prompt holds.
        slots: where an item's vector stands, beside its title.
    """

    instruction: str
    candidates: int
    slots: VectorPosition = "after"


class GenerativeManifest(CommonManifest):
    """Of a generative artifact: a language model with its head, causal or with an encoder, which writes items token by
    token.

    Attributes:
        architecture: class of the model in ``backbone/``.
        names: what an item is written as: its title, or the codes of its semantic ID.
        end: token that closes every written item and every item of a history; a prompt begins with it too. None for an
            encoder-decoder, whose items have one length.
        history_limit: newest items read.
        title_limit: tokens at which titles are cut; None for codes.
        code_sizes: codes of every level; empty for titles.
        user_buckets: tokens that user ids are hashed to; 0 where users are not read.
        beams, max_new_tokens: what it was evaluated with.
        renormalize: whether probabilities are divided among the tokens that may follow, as it was trained.
        grounding: where titles are written freely and then grounded.
        choice: where one of some candidates is written. Without both: along the trie of all names.
        tasks: where histories are put as prompts; None: as the names of their items alone.
    """

    kind: Literal["generative"]
    architecture: str
    names: Literal["titles", "codes"]
    end: int | None
    history_limit: int
    title_limit: int | None
    code_sizes: tuple[int, ...]
    user_buckets: int = 0
    beams: int
    max_new_tokens: int
    renormalize: bool = False
    grounding: GroundingRecord | None = None
    tasks: TaskRecord | None = None
    choice: ChoiceRecord | None = None


AnyManifest = Manifest | GenerativeManifest
_Kind = TypeVar("_Kind", Manifest, GenerativeManifest)


class GoldenTitle(_Data):
    """An item of a golden history that is given by its title alone."""

    title: str


GoldenItem = str | GoldenTitle


class _GoldenHistory(_Data):
    history: list[GoldenItem]

    @property
    def ids(self) -> list[str]:
        """The items that are given by their ids."""
        return [item for item in self.history if isinstance(item, str)]

    @property
    def titles(self) -> list[str]:
        """The items that are given by their titles."""
        return [item.title for item in self.history if isinstance(item, GoldenTitle)]

    def asked(self, row_of: Mapping[str, int]) -> list[int | str]:
        """The history as catalog rows and free titles."""
        return [item.title if isinstance(item, GoldenTitle) else row_of[item] for item in self.history]


class GoldenCase(_GoldenHistory):
    """A history, its user vector, and the ids it must be answered with (seen items left out)."""

    vector: list[float]
    top: list[str]


class WrittenCase(_GoldenHistory):
    """A history, the texts that are written for it, best first, and the items it must be answered with."""

    texts: list[str]
    top: list[str]


def sealed(manifest: CommonManifest) -> str:
    """The text of ``manifest.json``, its checksum included."""
    text = manifest.model_copy(update={"checksum": _BLANK}).model_dump_json(indent=2) + "\n"
    return text.replace(_seal(_BLANK), _seal(hashlib.sha256(text.encode()).hexdigest()), 1)


def seal(folder: Path, manifest: _Kind) -> _Kind:
    """Hash every file of a folder, and write and return its manifest with them and the version that follows."""
    files = hash_files(folder)
    described = manifest.model.model_dump(mode="json") if isinstance(manifest, Manifest) else manifest.recipe_data
    content = json.dumps([files, described], sort_keys=True)
    version = hashlib.sha256(content.encode()).hexdigest()[:12]
    found = manifest.model_copy(update={"schema_version": SCHEMA, "files": files, "version": version})
    (folder / MANIFEST).write_text(sealed(found), encoding="utf-8", newline="\n")
    return found


def _seal(checksum: str) -> str:
    return f'"checksum": "{checksum}"'


def _check_seal(text: str, checksum: object, folder: str) -> None:
    """Manifests written before there were checksums have none."""
    if not checksum:
        return
    found = hashlib.sha256(text.replace(_seal(str(checksum)), _seal(_BLANK), 1).encode()).hexdigest()
    if found != checksum:
        raise ArtifactError(
            f"{MANIFEST} of {folder} has sha256 {found[:12]}… without its checksum, and its checksum says "
            f"{str(checksum)[:12]!r}: it was altered after it was written"
        )


def read_manifest(folder: Folder) -> Manifest:
    """Parse ``manifest.json`` of a dense artifact alone.

    Raises:
        ArtifactError: as `read_any_manifest`, or the artifact is of the other kind.
    """
    manifest = read_any_manifest(folder)
    if not isinstance(manifest, Manifest):
        raise ArtifactError(f"artifact {folder.name} is generative ({manifest.recipe}), and a dense one is needed here")
    return manifest


def read_any_manifest(folder: Folder) -> AnyManifest:
    """Parse ``manifest.json`` alone.

    Raises:
        ArtifactError: it is missing, not JSON, of another schema version, altered, or lacks a field.
    """
    name = f"{MANIFEST} of {folder.name}"
    try:
        data = folder.read(MANIFEST, LARGEST_MANIFEST) if isinstance(folder, Files) else _read_alone(folder)
        text, raw = data.decode("utf-8"), parse(data, name)
    except JsonError as error:
        raise ArtifactError(one_line(error)) from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{name} is not JSON: {one_line(error)}") from error
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    if found not in READABLE or isinstance(found, bool) or not isinstance(raw, dict):
        raise ArtifactError(
            f"{name} has schema_version {repr(found)[:40]}, and this version reads {' and '.join(map(str, READABLE))}"
        )
    _check_seal(text, raw.get("checksum"), folder.name)
    kinds: dict[object, type[AnyManifest]] = {"dense": Manifest, "generative": GenerativeManifest}
    kind = str(raw.get("kind", "dense"))
    if kind not in kinds:
        raise ArtifactError(f"{name} has kind {kind[:40]!r}; known kinds are {', '.join(map(str, kinds))}")
    try:
        return kinds[kind].model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{name}: field {field[:80]!r}: {one_line(first['msg'])}") from error


def _read_alone(folder: Path) -> bytes:
    """The bytes of a manifest, without a look at the other files."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no {MANIFEST}: it is not an artifact")
    with path.open("rb") as stream:
        data = stream.read(LARGEST_MANIFEST + 1)
    if len(data) > LARGEST_MANIFEST:
        raise ArtifactError(f"{MANIFEST} of {folder.name} is larger than {LARGEST_MANIFEST} bytes")
    return data


@contextlib.contextmanager
def refusing(name: str) -> Iterator[None]:
    """Turn whatever reading an artifact called ``name`` raises into an ArtifactError of one sentence.

    What libraries raise at hostile files is no list that could be kept, and that of one of them (pyo3) is not even an
    Exception. What this machine lacks (PrecisionError) is not the artifact's fault and passes.
    """
    try:
        yield
    except (ArtifactError, PrecisionError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except MemoryError as error:
        raise ArtifactError(f"artifact {name} cannot be loaded: it needs more memory than there is") from error
    except KeyError as error:
        raise ArtifactError(f"artifact {name} cannot be loaded: it lacks {one_line(error)}") from error
    except BaseException as error:
        raise ArtifactError(f"artifact {name} cannot be loaded: {one_line(error) or type(error).__name__}") from error


def on_device(module: Module, device: str, name: str) -> Module:
    """``module`` of the artifact ``name`` there; raises ArtifactError where there is no such device."""
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:  # how torch says that a device is not there
        raise ArtifactError(f"artifact {name} cannot run on device {device!r}: {one_line(error)}") from error


def file_sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_files(folder: Folder, *, verify: bool = True) -> tuple[Files, AnyManifest]:
    """The files of an artifact, which are compared with its manifest when they are read, and the manifest.

    The folder is walked once and the manifest read once: both are what everything else is held against.

    Raises:
        ArtifactError: as `read_any_manifest`; a listed file is missing; there is one that is not listed.
    """
    try:
        if not isinstance(folder, Files) and not (folder / MANIFEST).is_file():
            raise ArtifactError(f"{folder} holds no {MANIFEST}: it is not an artifact")
        files = files_of(folder)
    except FolderError as error:
        raise ArtifactError(f"artifact {folder.name} cannot be read: {error}") from error
    manifest = read_any_manifest(files)
    present = set(files.names()) - {MANIFEST}
    if missing := sorted(set(manifest.files) - present):
        raise ArtifactError(f"artifact {files.name} lacks {missing[0]}, which {MANIFEST} lists")
    if verify and (extra := sorted(present - set(manifest.files))):
        raise ArtifactError(f"artifact {files.name} holds {one_line(extra[0])}, which {MANIFEST} does not list")
    if verify:
        files.expect(manifest.files)
    return files, manifest


def check_files(folder: Path, manifest: CommonManifest) -> None:
    """Every listed file is there with its hash, and no other file is; raises ``ArtifactError``."""
    files, found = open_files(folder)
    if found != manifest:
        raise ArtifactError(f"{MANIFEST} of {folder.name} was replaced meanwhile")
    files.verify_rest()


def read_golden(files: Folder) -> list[GoldenCase]:
    """The golden histories; raises ``ArtifactError``."""
    return [GoldenCase.model_validate(case) for case in golden_of(files_of(files))]


def golden_of(files: Files) -> list[Any]:
    """What stands in ``golden.json``, one entry a history; raises ``ArtifactError``."""
    found = files.json(GOLDEN)
    if not isinstance(found, list):
        raise ArtifactError(f"{GOLDEN} of {files.name} holds no list of histories")
    return found


def hash_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file of an artifact but its manifest."""
    return {name: file_sha256(path) for name, path in sorted(files_in(folder).items()) if name != MANIFEST}
