"""One suite over all methods: what whoever serves or compares an artifact may rely on, whatever its method is.

A method is in it by its file; ``testing/methods/<kind>.py`` says how a small one is trained. The method
`transitions` is none of the project's: its three files in ``tests/added_method`` show what a new one takes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

import anyo
import modeling.methods
import training.methods
import training.recipes
from index import Catalog
from modeling.artifact.folders import ArtifactError
from modeling.encoder.user_encoder import CannotReadText, read_history
from modeling.generation.api import ListQuery
from modeling.methods import Loaded, get_method, load, method_names
from modeling.methods.base_ranking import Rerank, best_first, best_rows, ranker_of
from testing.datasets import write_dataset
from testing.methods import Example
from testing.models import backbone_folder
from training.data.dataset import Dataset, read_dataset
from training.methods import __path__ as TRAINING
from training.recipe import method_names as trained_names
from training.recipes import get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

ADDED, NEW = Path(__file__).parents[2] / "added_method", "transitions"
PLACES = {"modeling": modeling.methods, "training": training.methods, "recipes": training.recipes}
WITHOUT_NETWORK = "dense without a network"
VARIANTS = {
    WITHOUT_NETWORK: Example(
        "sasrec",
        (
            "optimizer.epochs=1", "optimizer.positions=60", "items.dim=16", "projector.kind=none",
            "projector.residual=true", "projector.recent=4", "history.form=compressed", "items.tower=both",
            "items.text_source=FOLDER",
        ),
    )
}  # fmt: skip
KINDS = [*method_names(), *VARIANTS, NEW]
ITEMS, K = 20, 5
EMPTY = np.empty(0, np.int64)


def example_of(kind: str) -> Example:
    if kind in VARIANTS:
        return VARIANTS[kind]
    return Example(NEW, ()) if kind == NEW else importlib.import_module(f"testing.methods.{kind}").EXAMPLE


@pytest.fixture(scope="module")
def added() -> Iterator[None]:
    """The files of the new method beside those of the project."""
    with pytest.MonkeyPatch.context() as patch:
        for folder, package in PLACES.items():
            patch.setattr(package, "__path__", [*package.__path__, str(ADDED / folder)])
        yield


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_dataset(tmp_path_factory.mktemp("data") / "ring", users=24, items=ITEMS))


@pytest.fixture(scope="module")
def trained(
    added: None, ring: Dataset, backbone_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Folder of a small artifact of a method, trained when it is first asked for."""
    root, made = tmp_path_factory.mktemp("artifacts"), {}

    def train(example: Example, name: str) -> Path:
        if name not in made:
            backbone = str(backbone_folder("qwen3")) if example.language_model else None
            folder = str(backbone_folder("qwen3"))
            settings = [setting.replace("FOLDER", folder) for setting in example.settings]
            settings = [*settings, *([f"requires={example.requires}"] if example.requires else [])]
            recipe = get_recipe(example.recipe, settings, backbone=backbone)
            if recipe.method.codes_spec is not None:
                recipe = get_recipe(example.recipe, settings)
            small = Example("sasrec", ("items.dim=16", "backbone.width=16", "optimizer.epochs=1"))
            other = train(small, "id-model") if example.requires else None
            run(recipe, ring, RunOptions(out=root / name, id_model=other), Console(quiet=True))
            made[name] = root / name
        return made[name]

    return lambda kind: train(example_of(kind), kind)


@pytest.fixture(params=KINDS)
def loaded(request: pytest.FixtureRequest, trained: Callable[[str], Path]) -> Loaded[Any]:
    return load(trained(request.param))


History = Sequence[int | str]


def answers(loaded: Loaded[Any], histories: Sequence[History], **wanted: Any) -> list[list[int]]:
    """Rows for each history, best first, whatever the shape of the method."""
    query, model = ListQuery(**{"k": K, **wanted}), loaded.model
    if get_method(loaded.manifest.method.kind).shape == "list":
        prompts = [model.prepare(read_history(history, model.read_titles), "somebody") for history in histories]
        return [each.rows_K.tolist() for each in model.write(prompts, [query] * len(prompts))]
    encoder = model.encoder
    vectors = encoder.encode([encoder.prepare(read_history(history, encoder.read_titles)) for history in histories])
    _, rows_BK = model.index().search(vectors, query.k, exclude=[query.exclude] * len(histories), allowed=query.allowed)
    return [[row for row in rows_K.tolist() if row >= 0] for rows_K in rows_BK]


def asked(loaded: Loaded[Any]) -> list[tuple[History, list[int]]]:
    """Golden histories, and the rows that they were answered with where the artifact was trained."""
    catalog = Catalog.read(loaded.folder / "catalog.parquet")
    row_of = {item: row for row, item in enumerate(catalog.item_ids)}
    return [(case.asked(row_of), [row_of[item] for item in case.top]) for case in loaded.golden]


def test_every_method_can_be_trained_and_stored_and_has_an_example() -> None:
    assert method_names() == trained_names()
    for kind in method_names():
        assert get_method(kind).kind == kind and example_of(kind).recipe
    assert NEW not in method_names() and str(ADDED / "training") not in TRAINING, "it is known in this suite only"


def test_what_is_loaded_answers_as_what_was_saved(loaded: Loaded[Any]) -> None:
    assert len(loaded.golden) >= 10
    for history, top in asked(loaded):
        known = np.array([item for item in history if isinstance(item, int)], np.int64)
        assert answers(loaded, [history], k=len(top), exclude=known)[0] == top


def test_a_second_load_answers_the_same(loaded: Loaded[Any]) -> None:
    histories = [history for history, _ in asked(loaded)]
    assert answers(load(loaded.folder), histories) == answers(loaded, histories)


def test_an_answer_alone_is_the_answer_in_a_batch(loaded: Loaded[Any]) -> None:
    histories = [history for history, _ in asked(loaded)]
    assert [answers(loaded, [history])[0] for history in histories] == answers(loaded, histories)


def test_rows_are_real_none_twice_and_none_excluded(loaded: Loaded[Any]) -> None:
    histories = [history for history, _ in asked(loaded)]
    for history, rows in zip(histories, answers(loaded, histories), strict=True):
        assert len(set(rows)) == K and all(0 <= row < ITEMS for row in rows)
        others = answers(loaded, [history], exclude=np.array(rows, np.int64))[0]
        assert len(others) == K and not set(others) & set(rows)


def test_only_allowed_rows_are_answered_and_all_of_them_where_more_are_wanted(loaded: Loaded[Any]) -> None:
    history, _ = asked(loaded)[0]
    allowed = np.array([2, 3, 11, 17], np.int64)
    found = answers(loaded, [history], k=ITEMS, allowed=allowed, exclude=np.array([3], np.int64))[0]
    assert sorted(found) == [2, 11, 17]


def test_a_history_of_nothing_known_is_answered_where_lists_are_written(loaded: Loaded[Any]) -> None:
    if get_method(loaded.manifest.method.kind).shape == "list":
        assert len(answers(loaded, [[]])[0]) == K


def test_whose_history_it_is_may_be_unknown(loaded: Loaded[Any]) -> None:
    history, _ = asked(loaded)[0]
    if get_method(loaded.manifest.method.kind).shape == "list":
        prompts = [loaded.model.prepare(list(history), user) for user in (None, "nobody that was trained on")]
        assert all(len(each.rows_K) == K for each in loaded.model.write(prompts, [ListQuery(K)] * 2))


def test_a_free_title_is_read_or_clearly_refused(loaded: Loaded[Any]) -> None:
    assert "ids" in loaded.model.reads
    if "text" in loaded.model.reads:
        assert len(answers(loaded, [["A title that is in no catalog"]])[0]) == K
    else:
        with pytest.raises(CannotReadText, match="leave out"):
            answers(loaded, [["A title that is in no catalog"]])


def test_a_ranker_scores_in_a_batch_as_alone_whatever_the_order_of_candidates(loaded: Loaded[Any]) -> None:
    model = ranker_of(loaded.model)
    if model is None:
        return
    candidates: list[Any] = [3, 17, 2, 11, 9, 5]
    if "text" in model.reads:
        candidates += model.read_titles(["A title that is in no catalog"])
    prompts = [model.prepare_candidates(history[-model.history_limit :], candidates) for history in ([0, 1], [8, 4, 6])]
    for prompt, scores_C in zip(prompts, model.score(prompts), strict=True):
        assert prompt.length >= 1 and scores_C.shape == (len(candidates),) and np.isfinite(scores_C).all()
        (alone_C,) = model.score([prompt])
        np.testing.assert_allclose(alone_C, scores_C, atol=1e-5)
        (turned_C,) = model.score([model.prepare_candidates(prompt.history, candidates[::-1])])
        np.testing.assert_allclose(turned_C[::-1], scores_C, atol=1e-5)


def test_a_ranker_scores_in_parts_as_at_once(loaded: Loaded[Any]) -> None:
    """Whatever a part may hold; no candidate is lost, and what all parts read counts once."""
    model = ranker_of(loaded.model)
    if model is None:
        return
    prompt = model.prepare_candidates([8, 4, 6][-model.history_limit :], list(range(ITEMS)))
    (scores_C,) = model.score([prompt])
    numbers = []
    for most in (1, prompt.length // 2, prompt.length):
        parts = model.divide(prompt, most)
        numbers.append(len(parts))
        places = [place for part in parts for place in part.places]
        assert sorted(places) == list(range(ITEMS)) and all(part.prompt.length >= 1 for part in parts)
        found_C = np.concatenate([model.score([part.prompt])[0] for part in parts])
        np.testing.assert_allclose(found_C, scores_C[places], atol=1e-5)
    assert numbers[0] > numbers[1] > 1 and numbers[2] == 1


def test_it_is_served_as_it_answers(loaded: Loaded[Any]) -> None:
    served = anyo.load(loaded.folder)
    catalog = Catalog.read(loaded.folder / "catalog.parquet")
    for case in loaded.golden[:3]:
        if not case.titles:
            assert [item.item_id for item in served.recommend(case.ids, k=len(case.top))] == case.top
    assert set(case_ids(loaded)) <= set(catalog.item_ids)


def case_ids(loaded: Loaded[Any]) -> list[str]:
    return [item for case in loaded.golden for item in case.ids]


def test_the_record_is_the_methods_own(loaded: Loaded[Any]) -> None:
    method, stored = get_method(loaded.manifest.method.kind), loaded.manifest.method.record
    assert method.Record.model_validate(stored) == loaded.record
    with pytest.raises(ValidationError, match="surprise"):
        method.Record.model_validate({**stored, "surprise": 1})
    assert method.precisions(loaded.record)[0] == "fp32"


def test_a_changed_file_is_refused(loaded: Loaded[Any], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(loaded.folder, tmp_path / "copy"))
    largest = max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=largest.name):
        load(folder)


def test_without_a_network_the_newest_items_alone_make_the_vector(trained: Callable[[str], Path]) -> None:
    """The user's vector is the weighted sum of item vectors; nothing of a network is stored, loaded or offered."""
    found = load(trained(WITHOUT_NETWORK))
    encoder = found.model.encoder
    assert not list(encoder.backbone.parameters()) and not (found.folder / "backbone").exists()
    assert get_method("dense").precisions(found.record) == ("fp32",) and "no network" in found.model.compile()
    rows = [3, 9, 4, 7, 1, 12]
    table_ND, weights_R = encoder.items.table(), encoder.projector.newest_weight
    sum_D = sum(weight * table_ND[row] for weight, row in zip(weights_R, rows[::-1], strict=False))
    expected_D = sum_D / sum_D.norm()
    np.testing.assert_allclose(encoder.encode([encoder.prepare(rows)])[0], expected_D.numpy(), atol=1e-6)
    title, known = encoder.with_titles(["red lamp"]), encoder.with_titles(["a lamp"])
    assert not np.allclose(*(encoder.encode([encoder.prepare(items)])[0] for items in (title, known)), atol=1e-3)


@pytest.mark.parametrize("kind", [NEW, "llara"])
def test_two_stages_rank_what_was_retrieved(trained: Callable[[str], Path], kind: str) -> None:
    """Composition: candidates are the retriever's, their order the ranker's, and what is excluded stays out."""
    retriever, ranker = load(trained("dense")).model, load(trained(kind)).model
    both, rows, wanted = Rerank(retriever, ranker, candidates=8), [3, 4, 6], ListQuery(4, np.array([3, 4, 6]))
    found, scores = both.rank(rows, wanted)
    vector_D = retriever.encoder.encode([retriever.encoder.prepare(rows)])[0]
    candidates = set(best_rows(retriever.item_vectors_ND @ vector_D, ListQuery(8, wanted.exclude))[0].tolist())
    assert set(found.tolist()) <= candidates and not set(found.tolist()) & set(rows)
    asked_C = np.array(sorted(candidates))
    (scores_C,) = ranker.score([ranker.prepare_candidates(rows, asked_C.tolist())])
    assert found.tolist() == asked_C[best_first(scores_C)[:4]].tolist() and (np.diff(scores) <= 0).all()
    (written,) = both.write([both.prepare(rows)], [wanted])
    assert written.rows_K.tolist() == found.tolist() and written.generated == ()
