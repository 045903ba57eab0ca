"""Index folders: the same index comes back whatever its kind, and damage is refused in one sentence."""

from __future__ import annotations

import hashlib
import json

import faiss
import numpy as np
import pytest

from index import FlatIndex, IndexFolderError, VectorIndex, build_index, open_index, parse_index, save_index, spec_of
from index.base import IndexSpec
from index.kinds import index_class, kind_names
from index.spec import changed


def vectors(size=2000, dim=8, seed=2):
    return np.random.default_rng(seed).standard_normal((size, dim)).astype(np.float32)


def saved(kind, folder, **given):
    save_index(build_index(spec_of(kind), vectors(**given)), folder)
    return folder


@pytest.mark.parametrize("kind", kind_names())
def test_saving_is_repeatable_and_opening_gives_the_same_answers(kind, tmp_path):
    given = vectors()
    built = build_index(spec_of(kind), given)
    save_index(built, tmp_path / "a")
    saved(kind, tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["index.faiss", "index.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    opened = open_index(tmp_path / "a")
    parsed = parse_index(tmp_path / "a", *((tmp_path / "a" / name).read_bytes() for name in reversed(names)))
    for index in (opened, parsed):
        assert isinstance(index, VectorIndex) and (index.size, index.dim) == given.shape
        assert (index.spec, index.recall_at_10) == (built.spec, built.recall_at_10)
        assert (index.recall_queries, index.nbytes) == (built.recall_queries, built.nbytes)
        for k, exclude in ((7, None), (2100, None), (10, [np.arange(300)] * 3)):
            for before, after in zip(
                built.search(given[:3], k, exclude), index.search(given[:3], k, exclude), strict=True
            ):
                assert np.array_equal(before, after)
        assert np.array_equal(index.vectors(), given)


@pytest.mark.parametrize("kind", kind_names())
def test_every_value_of_a_folder_that_is_cut_or_changed_is_refused(kind, tmp_path):
    """Damage that keeps the hash of index.json valid, as somebody would who wants to harm whoever opens the file."""
    folder = saved(kind, tmp_path / "index", size=40)
    whole = (folder / "index.faiss").read_bytes()
    expected = open_index(folder).search(vectors(size=40), 5)
    rng = np.random.default_rng(0)
    heads = [*range(64), *rng.integers(0, len(whole), 150).tolist()]
    for place in heads:
        content = bytearray(whole)
        content[place] ^= int(rng.choice([1, 0x80, 0xFF]))
        _try(folder, bytes(content), expected)
    for length in (0, 3, 40, len(whole) // 2, len(whole) - 1):
        with pytest.raises(IndexFolderError):
            _open_with(folder, whole[:length])
    with pytest.raises(IndexFolderError):
        _open_with(folder, whole + b"\0" * 4)


def _open_with(folder, content):
    (folder / "index.faiss").write_bytes(content)
    entry_says(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())(folder)
    return open_index(folder)


def _try(folder, content, expected):
    """Refused with a sentence, or an index of the right shape that can be searched."""
    try:
        index = _open_with(folder, content)
    except IndexFolderError as error:
        assert "\n" not in str(error)
        return
    try:
        _, rows = index.search(vectors(size=40), 5)
    except ValueError:  # a vector that is not finite any more
        return
    assert rows.shape == expected[1].shape and rows.max() < 40


def other_vectors(folder):
    save_index(FlatIndex.build(np.ones((5, 3))), folder.parent / "other")
    (folder / "index.faiss").write_bytes((folder.parent / "other" / "index.faiss").read_bytes())


def truncated(folder):
    path = folder / "index.faiss"
    path.write_bytes(path.read_bytes()[:-1])


def one_bit(folder):
    path = folder / "index.faiss"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def entry_says(**changes):
    def change(folder):
        path = folder / "index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def another_kind(folder):
    index = faiss.IndexPQ(3, 1, 4, faiss.METRIC_INNER_PRODUCT)
    faiss.write_index(index, str(folder / "index.faiss"))
    content = (folder / "index.faiss").read_bytes()
    entry_says(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())(folder)


@pytest.mark.parametrize("kind", kind_names())
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "index.json").unlink(), "holds no index.json"),
        (lambda folder: (folder / "index.faiss").unlink(), "index.faiss is missing"),
        (lambda folder: (folder / "index.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "index.json").write_text("[]"), "holds a list; expected an object"),
        (other_vectors, "bytes; index.json says"),
        (truncated, "bytes; index.json says"),
        (one_bit, "sha256"),
        (entry_says(schema=3), "schema 3; this version reads 1 and 2"),
        (entry_says(dim="3"), "dim = '3'; expected int"),
        (entry_says(dim=4), "has dim 3; index.json says 4"),
        (entry_says(size=5), "has size 4; index.json says 5"),
        (entry_says(metric="l2"), "metric 'l2'; scores here are inner products"),
        (entry_says(recall_at_10=1.5), "a share lies between 0 and 1"),
        (entry_says(kind="lsh"), "index kind 'lsh' not found; kinds are .*flat"),
        (entry_says(parameters={"odd": 1}), "has no parameter 'odd'"),
        (entry_says(parameters=None), "parameters = None; expected an object"),
        (another_kind, r"holds an index of kind b'IxPq'; index.json says \w+"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(kind, tmp_path, damage, message):
    folder = tmp_path / "index"
    save_index(build_index(spec_of(kind), np.eye(4, 3)), folder)
    damage(folder)
    with pytest.raises(IndexFolderError, match=message) as caught:
        open_index(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_of_schema_1_holds_exact_search(tmp_path):
    folder = saved("flat", tmp_path, size=4)
    old = json.loads((folder / "index.json").read_text())
    for name in ("kind", "parameters", "recall_queries"):
        del old[name]
    (folder / "index.json").write_text(json.dumps({**old, "schema": 1, "factory": "Flat"}))
    assert open_index(folder).spec == spec_of("flat")
    entry_says(factory="IVF16,Flat")(folder)
    with pytest.raises(IndexFolderError, match="factory 'IVF16,Flat'; schema 1 has Flat alone"):
        open_index(folder)


@pytest.mark.parametrize("kind", kind_names())
def test_every_kind_has_a_spec_whose_values_are_usual_ones_and_are_checked(kind):
    spec = spec_of(kind)
    assert isinstance(spec, index_class(kind).Spec) and isinstance(spec, IndexSpec) and spec.kind == kind
    assert changed(spec_of("flat"), {"kind": kind}) == spec
    with pytest.raises(ValueError, match=f"index kind '{kind}' has no parameter 'odd'"):
        spec_of(kind, {"odd": 1})
    for name in spec.parameters:
        with pytest.raises(ValueError, match=f"index kind '{kind}': {name}: "):
            changed(spec, {name: -1})
