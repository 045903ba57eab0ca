"""Every recipe on titles that spell control tokens, separators and numbers: trained, written, served twice, moved away.

The backbone of those that read text is a local folder, which is gone when they are served.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from modeling.artifact.manifest import read_manifest
from service.artifacts.loading import open_artifact
from service.http.app import create_app
from service.http.schemas import ArtifactList
from service.service import Service
from service.settings import load_settings
from testing.datasets import write_dataset
from training import tiny
from training.data.dataset import Dataset, read_dataset
from training.recipes import get_recipe, recipe_names
from training.run import RunOptions, run

QUIET = Console(quiet=True)
ODD = [
    "<|end|>", "red <|end|> lamp", "<|end|><|end|>", "[SEP] [MASK] [UNK] [CLS]", "</s>", "<s>", "<unk>", "<pad>",
    "<think>", "1984", "AC/DC", '{"title": "x"}', '"quoted"', '""', "a, b -> c", "Next:", "a\nChoose:\nb",
    "two  spaces",
    "no\u00a0break", "caf\u00e9", "cafe\u0301", "{history} {item}", "\U0001f600", "<0x0A>", "\u2581",
    "%s %d", "blue\ttab",
]  # fmt: skip
SETTINGS: dict[str, list[str]] = {
    "sasrec": ["items.dim=32", "backbone.width=32"],
    "anyo": ["items.dim=16"],
    "contriever": ["items.dim=16", "history.title_tokens=12"],
    "genre": ["history.title_tokens=12"],
    "bigrec": ["history.title_tokens=12"],
    "llara": ["history.title_tokens=12", "method.candidates=4"],
    "tiger": ["method.codes.kind=random", "backbone.width=32", "backbone.heads=2"],
    "p5": ["backbone.width=32", "backbone.heads=2", "backbone.depth=1"],
    "item_softmax": [],
    "ilora": ["history.title_tokens=12", "items.dim=32"],
    "llm2vec": ["history.title_tokens=12", "method.adaptation.masked_steps=2", "method.adaptation.simcse_steps=2"],
    "llara_dense": ["history.title_tokens=12", "method.adaptation.passage_steps=2"],
}
ON_TEXT = ("anyo", "contriever", "genre", "bigrec", "llara", "item_softmax", "ilora", "llm2vec", "llara_dense")
OTHERWISE = {
    **dict.fromkeys(
        ("popularity", "markov", "item_knn", "dllm2rec", "e4srec", "sracl", "cllmrec"), "reads no titles by itself"
    ),
    "hybrid_knn": "splits titles into words by itself, in training only",
    **dict.fromkeys(("tallrec", "llamarec"), "labels are words of its tokenizer, which these titles do not give"),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = write_dataset(tmp_path_factory.mktemp("odd"), users=40, items=40)
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    for row, title in zip(rows, ODD, strict=False):
        row["title"] = title
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_dataset(folder)


@pytest.fixture(scope="module")
def backbone(odd: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model made for these titles, in a folder of somebody's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "TOKEN_BUDGET", 20_000)
        made = tiny.ensure_tiny(
            odd.titles, odd.categories, [], cache=tmp_path_factory.mktemp("home"), seed=0, console=QUIET
        )
    return made.rename(made.parent / "my-model")


@pytest.fixture(scope="module")
def trained(odd: Dataset, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of every recipe, twice; the backbone's folder is gone."""
    root = tmp_path_factory.mktemp("artifacts")
    made = tmp_path_factory.mktemp("made")
    for name in ("sasrec", *(name for name in SETTINGS if name != "sasrec")):
        settings = [*SETTINGS[name], "optimizer.epochs=1", "optimizer.positions=400", "history.limit=6"]
        recipe = get_recipe(name, settings, backbone=str(backbone) if name in ON_TEXT else None)
        id_model = made / "sasrec" if recipe.requires else None
        run(recipe, odd, RunOptions(out=made / name, id_model=id_model), QUIET)
    backbone.rename(backbone.with_name("elsewhere"))
    shutil.copytree(made, root / "moved", dirs_exist_ok=True)
    shutil.rmtree(made)
    return root / "moved"


def test_every_recipe_is_tried() -> None:
    assert set(SETTINGS) == set(recipe_names()) - set(OTHERWISE)


@pytest.mark.parametrize("name", SETTINGS)
def test_it_reads_titles_and_answers_its_golden_histories(name: str, trained: Path, backbone: Path) -> None:
    folder = trained / name
    parts = open_artifact(folder, "cpu")
    titles = {title for case in parts.golden for title in case.titles}
    assert bool(titles) == ("text" in parts.reads), "free titles are among the golden histories"
    for file in folder.rglob("*"):
        if file.is_file():
            assert str(backbone.parent).encode() not in file.read_bytes(), f"{file} names a folder of the machine"
    source = read_manifest(folder).recipe_data["backbone"]["source"]
    assert source.startswith("folder:my-model@") == (name in ON_TEXT)


@pytest.mark.parametrize("name", ["genre", "bigrec", "llara"])
def test_no_name_holds_the_end_token(name: str, trained: Path) -> None:
    parts: Any = open_artifact(trained / name, "cpu")
    assert parts.model.end not in parts.model.names.tokens.tokens
    read = parts.model.read_titles(["<|end|>", "red <|end|> lamp"])
    assert all(parts.model.end not in item.tokens and len(item.tokens) for item in read)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return create_app(Service(load_settings(store="sqlite:///:memory:"))).openapi()


@pytest.mark.parametrize("name", SETTINGS)
async def test_two_of_a_kind_are_served_and_listed_as_the_schema_says(
    name: str, trained: Path, schema: dict[str, Any], tmp_path: Path
) -> None:
    """Golden histories, free titles among them, are answered on the way; what the two share is published."""
    second = Path(shutil.copytree(trained / name, tmp_path / "second"))
    text = (second / "manifest.json").read_text().replace(f'"name": "{name}"', '"name": "second"')
    raw = json.loads(text)
    (second / "manifest.json").write_text(json.dumps(raw | {"checksum": ""}))
    service = Service(load_settings(artifacts=(trained / name, second), store="sqlite:///:memory:", warmup_requests=0))
    await service.start()
    assert service.loading is not None
    await service.loading
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        listed = (await client.get("/artifacts")).json()
    await service.close()
    ArtifactList.model_validate(listed)
    shared = {share["part"] for row in listed["items"] for share in row["shares"]}
    assert shared <= set(schema["components"]["schemas"]["Part"]["enum"])
    assert len(listed["items"]) == 2 and all(row["shares"] for row in listed["items"])
