"""A seeded sample of artifacts made to do harm (`benchmarks/faults/hostile_artifacts.py` runs hundreds of them)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.faults.hostile_artifacts import MIB, made, mistake, run
from index import Catalog
from modeling.encoder.build import build_model
from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, ModelSpec, ProjectorSpec
from service.artifacts.loading import open_artifact
from testing.artifacts import write_dense_artifact
from testing.artifacts import write_id_artifact as write
from testing.hostile import KINDS
from testing.models import ITEMS, TITLES, _config, _tokenizer

SAMPLE = 25


def write_language_model(folder: Path, name: str) -> Path:
    """A dense artifact around a small language model with an adapter, which reads titles."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    source = folder / "source"
    AutoModelForCausalLM.from_config(_config("qwen3")).save_pretrained(str(source))
    _tokenizer().save_pretrained(str(source))
    spec = ModelSpec(
        history=HistorySpec(form="titles", dropout=0.0, instruction="items chosen"),
        backbone=BackboneSpec(source=str(source), dropout=0.0),
        adapter=AdapterSpec(kind="lora", rank=4, alpha=8),
        projector=ProjectorSpec(residual=False),
        items=ItemsSpec(tower="id", dim=16),
    )
    model = build_model(spec, catalog_size=ITEMS, titles=TITLES)
    ids = tuple(f"i{row}" for row in range(ITEMS))
    catalog = Catalog(ids, tuple(TITLES), ((),) * ITEMS, np.arange(ITEMS, dtype=np.int64), "train")
    return write_dense_artifact(model, folder / name, catalog, [[3], [0, 5, 7]])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("whole")
    return [write(folder, "ids"), write_language_model(folder, "titles")]


@pytest.mark.linux
def test_hostile_artifacts_harm_nobody(bases: list[Path]) -> None:
    """The service lives and answers the same; each is loaded harmlessly or refused in one sentence, within memory."""
    figures = run(
        bases[0], bases, range(SAMPLE), 1, memory=1024 * MIB, seconds=60, program="benchmarks.faults.forked_trials"
    )
    assert figures["found"] == []
    assert figures["artifacts"] >= SAMPLE - 5, "some kinds are for artifacts of other recipes"
    assert figures["statuses"].get(409, 0) > SAMPLE // 2
    assert figures["livez_polls"] > SAMPLE


def test_the_bases_are_whole_and_every_change_changes_one(bases: list[Path], tmp_path: Path) -> None:
    """What is refused is refused for the change, and not because it was no artifact to begin with."""
    for base in bases:
        open_artifact(base, "cpu")
    before = {path.relative_to(base): path.read_bytes() for base in bases for path in base.rglob("*") if path.is_file()}
    hostile = [made(bases, tmp_path, number, 1) for number in range(SAMPLE)]
    assert len({how for each in hostile if each for how in [each[0].split(" of ")[0]]}) >= SAMPLE - 5
    assert before == {
        path.relative_to(base): path.read_bytes() for base in bases for path in base.rglob("*") if path.is_file()
    }
    assert len(KINDS) > 200


@pytest.mark.parametrize(
    ("status", "body", "wrong"),
    [
        (409, '{"error": {"code": "artifact_refused", "message": "it is no artifact"}}', False),
        (200, "{}", False),
        (500, "Internal Server Error", True),
        (409, "refused", True),
        (409, '{"error": {"code": "x", "message": "two\\nlines"}}', True),
        (409, '{"error": {"code": "x", "message": "ended with signal SIGSEGV"}}', True),
    ],
)
def test_a_wrong_answer_is_noticed(status: int, body: str, wrong: bool) -> None:
    import httpx

    assert (mistake(httpx.Response(status, text=body)) is not None) == wrong
