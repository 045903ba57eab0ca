"""An artifact with an approximate index is trained, evaluated, served and rewritten; what it misses is stated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from index import FlatIndex, build_index, open_index, spec_of
from index.approximate import overlaps
from index.kinds import index_class, kind_names
from modeling.artifact.manifest import check_files, read_manifest
from modeling.methods.dense import load_artifact
from service.artifacts.loading import LoadedArtifact, open_artifact
from service.errors import StartError
from service.http.app import create_app
from service.service import Service
from service.settings import load_settings
from tests.training.loop.test_fit import write_dataset
from training.cli import app
from training.compare import evaluate_artifact
from training.data.dataset import read_dataset
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run

QUIET = Console(quiet=True)
SMALL = [
    *("items.dim=16", "backbone.width=16", "optimizer.epochs=1", "optimizer.positions=200"),
    *("index.kind=hnsw", "index.links=8", "index.effort=64"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "ring", users=200, items=2500)


@pytest.fixture(scope="module")
def artifact(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "graph"
    run(get_recipe("sasrec", SMALL), read_dataset(data), RunOptions(out=out), QUIET)
    return out


async def serve(parts: LoadedArtifact, histories: list[np.ndarray]) -> list[list[str]]:
    """Start a service with an artifact, golden check included, and ask it."""
    service = Service(
        load_settings(artifacts=(Path(parts.name),), store="sqlite:///:memory:", max_loop_delay_ms=0),
        open_artifact=lambda folder, device: parts,
    )
    await service.start()
    try:
        assert service.loading is not None
        await service.loading
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            found = []
            for history in histories:
                body = {"history": [parts.catalog.item_ids[row] for row in history], "k": 10}
                answer = (await client.post("/recommend", json=body)).json()
                found.append([item["item_id"] for item in answer["items"]])
            return found
    finally:
        await service.close()


async def test_it_is_served_with_the_recall_that_it_states(artifact: Path) -> None:
    parts = open_artifact(artifact, "cpu")
    assert isinstance(parts, LoadedArtifact)
    spec = json.loads((artifact / "index" / "index.json").read_text())
    assert spec["kind"] == "hnsw" and spec["recall_queries"] == "users"
    assert read_manifest(artifact).recipe_data["index"]["links"] == 8
    assert not parts.index.exact and parts.index.recall_at_10 == spec["recall_at_10"] < 1
    rng = np.random.default_rng(0)
    histories = [rng.choice(2500, 5, replace=False) for _ in range(60)]
    served = await serve(parts, histories)
    users = parts.encoder.encode([parts.encoder.prepare(history.tolist()) for history in histories])
    _, exact = FlatIndex.build(parts.index.vectors()).search(users, 10, histories)
    rows = [np.array(parts.catalog.rows(items)) for items in served]
    assert all(not set(found) & set(history) for found, history in zip(rows, histories, strict=True))
    assert np.mean(overlaps(rows, exact)) >= spec["recall_at_10"] - 0.05


def test_evaluation_shows_what_the_served_index_loses(artifact: Path, data: Path) -> None:
    row, result = evaluate_artifact(artifact, read_dataset(data), "test", seed=0, ledger=False, console=QUIET)
    vectors_ND = load_artifact(artifact).item_vectors_ND
    found = (result.top_rows_TK[:, :10] == result.targets.rows_T[:, None]).any(1).mean()
    assert row["served_index"]["recall@10"] == pytest.approx(found)
    assert found <= (result.ranks_T <= 10).mean() + 1e-9 and len(vectors_ND) == 2500


async def test_an_index_of_other_vectors_or_with_wrong_scores_is_refused(artifact: Path) -> None:
    parts = open_artifact(artifact, "cpu")
    assert isinstance(parts, LoadedArtifact)
    other = build_index(parts.index.spec, np.roll(parts.index.vectors(), 1, axis=0))  # type: ignore[attr-defined]
    with pytest.raises(StartError, match="index or catalog is another one"):
        await serve(dataclasses.replace(parts, index=other), [])

    class Doubled(index_class("hnsw")):  # type: ignore[misc]
        def search(self, *given, **named):  # type: ignore[no-untyped-def]
            scores, rows = super().search(*given, **named)
            return 2 * scores, rows

    doubled = Doubled(parts.index._index, parts.index.spec)  # type: ignore[attr-defined]
    doubled.recall_at_10 = parts.index.recall_at_10
    with pytest.raises(StartError, match="scores that differ from the inner products by"):
        await serve(dataclasses.replace(parts, index=doubled), [])


@pytest.mark.parametrize("kind", kind_names())
async def test_rewrite_gives_an_artifact_an_index_of_any_kind(artifact: Path, kind: str, tmp_path: Path) -> None:
    out = tmp_path / "rewritten"
    result = CliRunner().invoke(app, ["rewrite", str(artifact), "--out", str(out), "--set", f"index.kind={kind}"])
    assert result.exit_code == 0, result.output
    manifest = read_manifest(out)
    check_files(out, manifest)
    assert open_index(out / "index").spec.kind == kind == manifest.recipe_data["index"]["kind"]
    assert manifest.files["golden.json"] == read_manifest(artifact).files["golden.json"], "exact lists"
    parts = open_artifact(out, "cpu")
    assert isinstance(parts, LoadedArtifact)
    assert len((await serve(parts, [np.array([1, 2, 3])]))[0]) == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["index.kind=tree"], "index kind 'tree' not found; kinds are flat, hnsw"),
        (["index.links=8"], "index kind 'flat' has no parameter 'links'; it has none"),
        (["index.kind=hnsw", "index.links=1"], "index kind 'hnsw': links: .* greater than or equal to 2"),
        (["index.kind=hnsw", "index.odd=1"], "has no parameter 'odd'; it has links, build_effort, effort"),
    ],
)
def test_a_setting_of_the_index_that_is_not_allowed_is_refused(
    settings: list[str], message: str, artifact: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        get_recipe("sasrec", settings)


def test_the_order_of_settings_does_not_matter() -> None:
    recipe = get_recipe("sasrec", ["index.effort=9", "index.kind=hnsw"])
    assert recipe.index == spec_of("hnsw", {"effort": 9})
