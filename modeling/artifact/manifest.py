"""``manifest.json`` and the other facts of an artifact that can be read without loading a model."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch.nn import Module

from modeling.artifact.folders import MOST_FILES, FolderError, files_in
from modeling.artifact.folders import ArtifactError as ArtifactError
from modeling.artifact.folders import one_line as one_line
from modeling.artifact.older_schemas import upgraded
from modeling.artifact.plain_json import JsonError, parse
from modeling.artifact.verified import Files, Folder, files_of
from modeling.inference.int8_linear import PrecisionError

SCHEMA = 3
"""Of what is written. Since 2 golden histories may hold free titles, and local folders are not named by their paths;
since 3 what a method needs stands in a record of its own."""
READABLE = (1, 2, 3)
LARGEST_MANIFEST = 64 << 20
MANIFEST = "manifest.json"

_BLANK = "0" * 64


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


LONGEST_LABEL = 255


def _label(text: str) -> str:
    if not text.isprintable() or len(text) > LONGEST_LABEL:
        raise ValueError(f"at most {LONGEST_LABEL} printable characters are allowed, and it is {text[:40]!a}")
    return text


Label = Annotated[str, AfterValidator(_label)]
"""Text for consoles, logs and labels of metrics."""


def _file_name(name: str) -> str:
    """A manifest from elsewhere must not name a file outside its folder."""
    path = PurePosixPath(name)
    odd = path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable() or str(path) != name
    if odd or name == MANIFEST or len(name) > LONGEST_LABEL:
        raise ValueError(f"{name[:80]!a} is not a plain path inside the artifact")
    return name


FileName = Annotated[str, AfterValidator(_file_name)]


class MethodRecord(_Data):
    """Record of an artifact's method.

    Attributes:
        kind: name of the method, a module of `modeling.methods`.
        record: fields of the method's own record class (`modeling.methods.base.Method.Record`), as JSON.
    """

    kind: Label
    record: dict[str, Any]


class Manifest(_Data):
    """Common fields of ``manifest.json``, and the record of the method.

    ``files`` maps every other file to its sha256; ``version`` hashes them all.

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
    method: MethodRecord

    def with_record(self, record: BaseModel) -> Manifest:
        """The same with another record of its method."""
        return self.model_copy(
            update={"method": MethodRecord(kind=self.method.kind, record=record.model_dump(mode="json"))}
        )


def sealed(manifest: Manifest) -> str:
    """The text of ``manifest.json``, its checksum included."""
    text = manifest.model_copy(update={"checksum": _BLANK}).model_dump_json(indent=2) + "\n"
    return text.replace(_seal(_BLANK), _seal(hashlib.sha256(text.encode()).hexdigest()), 1)


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file of a folder, and write and return its manifest with them and the version that follows."""
    files = hash_files(folder)
    content = json.dumps([files, manifest.method.model_dump(mode="json")], sort_keys=True)
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
    """Parse ``manifest.json`` alone.

    Raises:
        ArtifactError: it is missing, not JSON, of another schema version, altered, or lacks a field. The record of the
            method is validated by the method (`modeling.methods.record_of`).
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
    return validated(Manifest, upgraded(raw, name), name)


_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], raw: object, name: str, prefix: str = "") -> _Model:
    """``raw`` as a ``model``; raises ArtifactError with the first field that is wrong, after ``prefix``."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = prefix + ".".join(str(part) for part in first["loc"])
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


def open_files(folder: Folder, *, verify: bool = True) -> tuple[Files, Manifest]:
    """The files of an artifact, which are compared with its manifest when they are read, and the manifest.

    The folder is walked once and the manifest read once: both are what everything else is held against.

    Raises:
        ArtifactError: as `read_manifest`; a listed file is missing; there is one that is not listed.
    """
    try:
        if not isinstance(folder, Files) and not (folder / MANIFEST).is_file():
            raise ArtifactError(f"{folder} holds no {MANIFEST}: it is not an artifact")
        files = files_of(folder)
    except FolderError as error:
        raise ArtifactError(f"artifact {folder.name} cannot be read: {error}") from error
    manifest = read_manifest(files)
    present = set(files.names()) - {MANIFEST}
    if missing := sorted(set(manifest.files) - present):
        raise ArtifactError(f"artifact {files.name} lacks {missing[0]}, which {MANIFEST} lists")
    if verify and (extra := sorted(present - set(manifest.files))):
        raise ArtifactError(f"artifact {files.name} holds {one_line(extra[0])}, which {MANIFEST} does not list")
    if verify:
        files.expect(manifest.files)
    return files, manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Every listed file is there with its hash, and no other file is; raises ``ArtifactError``."""
    files, found = open_files(folder)
    if found != manifest:
        raise ArtifactError(f"{MANIFEST} of {folder.name} was replaced meanwhile")
    files.verify_rest()


def hash_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file of an artifact but its manifest."""
    return {name: file_sha256(path) for name, path in sorted(files_in(folder).items()) if name != MANIFEST}
