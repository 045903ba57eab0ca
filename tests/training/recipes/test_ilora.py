"""iLoRA: gates belong to a user, come from what the prompt holds, travel in the artifact, and mix what LoRA adds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from index import Catalog
from modeling.backbone.adapters import AdapterError, adapter_of
from modeling.backbone.adapters.condition import conditioned_on
from modeling.backbone.adapters.ilora import ExpertMap, GatedBackbone, Router, gated_by
from modeling.encoder.history_state import HistoryState
from modeling.encoder.prompt import FreeItem
from modeling.encoder.user_encoder import UserEncoder
from modeling.inference.encoder_forward import compile_encoder
from modeling.methods.dense import Artifact, ArtifactError, check_golden, load_artifact
from modeling.spec import AdapterSpec
from testing.datasets import QUIET
from testing.models import HIDDEN, backbone_folder
from training.data.dataset import Dataset
from training.data.splits import leave_one_out
from training.evaluation.gates import gates_of
from training.loop.examples import Window
from training.loop.module import RetrievalModule
from training.methods.dense import DenseSettings
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

SPEC = AdapterSpec(kind="ilora", rank=4, alpha=8, experts=2)
HISTORIES = [[3], [0, 5, 7, 2, 9], [1, 2], [11, 4, 8]]


@pytest.fixture(scope="module")
def folder(
    ring: Dataset, sasrec: Path, backbone_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "ilora"
    settings = ["items.dim=32", "optimizer.epochs=2", "optimizer.positions=40", "history.limit=5", "adapter.dropout=0"]
    recipe = get_recipe("ilora", settings, backbone=str(backbone_folder("qwen3")))
    run(recipe, ring, RunOptions(out=out, id_model=sasrec), QUIET)
    return out


@pytest.fixture
def artifact(folder: Path) -> Artifact:
    return load_artifact(folder)


def expert_map() -> ExpertMap:
    torch.manual_seed(0)
    found = ExpertMap(nn.Linear(6, 5), SPEC)
    nn.init.normal_(found.up_OR)
    return found


def outputs(map_: ExpertMap, gates_E: list[float]) -> tuple[Tensor, Tensor]:
    """What it adds to its base, and what it was given."""
    states_BTI = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), gated_by(torch.tensor([gates_E] * 3)):
        return map_(states_BTI) - map_.base(states_BTI), states_BTI


def test_uniform_gates_are_plain_lora_and_one_gate_is_one_expert() -> None:
    map_ = expert_map()
    added, states = outputs(map_, [0.5, 0.5])
    torch.testing.assert_close(added, SPEC.alpha / SPEC.rank * states @ map_.down_RI.T @ map_.up_OR.T)
    added, states = outputs(map_, [0.0, 1.0])
    second = states @ map_.down_RI[2:].T @ map_.up_OR[:, 2:].T
    torch.testing.assert_close(added, SPEC.alpha / (SPEC.rank // SPEC.experts) * second)


def test_gates_are_learned_once_b_has_left_zero() -> None:
    torch.manual_seed(0)
    map_, router = ExpertMap(nn.Linear(6, 5), SPEC), Router(2)
    states_BC, given_BTI = torch.randn(3, 7), torch.randn(3, 4, 6)
    for started in (False, True):
        if started:
            nn.init.normal_(map_.up_OR)
        router.zero_grad()
        with gated_by(router(states_BC)):
            map_(given_BTI).square().sum().backward()
        moved = sum(float(weight.grad.abs().sum()) for weight in router.parameters() if weight.grad is not None)
        assert (moved > 0) == started


def test_a_gate_does_not_depend_on_the_batch_also_in_training_mode() -> None:
    torch.manual_seed(0)
    router, states_BC = Router(4).train(), torch.randn(5, 32)
    gates_BE = router(states_BC)
    torch.testing.assert_close(gates_BE[2:3], router(states_BC[2:3]))
    torch.testing.assert_close(gates_BE.sum(1), torch.ones(5))
    assert gates_BE.std(0).max() > 1e-4


def test_the_manifest_says_that_nothing_is_merged_packed_or_reused_and_one_target_a_window(artifact: Artifact) -> None:
    found = artifact.record.capabilities
    assert found.causal
    assert not (found.merges or found.packed or found.prefix_reuse or found.every_boundary)
    assert "adapter 'ilora'" in compile_encoder(artifact.encoder)


def test_it_loads_with_its_id_model_and_answers_as_in_training(artifact: Artifact, folder: Path, sasrec: Path) -> None:
    catalog = Catalog.read(folder / "catalog.parquet")
    histories = [
        [item.title if not isinstance(item, str) else catalog.row(item) for item in case.history]
        for case in artifact.golden
    ]
    check_golden(artifact, cast(Any, histories))
    stored = load_file(folder / "parts" / "history_state.safetensors")
    own = load_file(sasrec / "parts" / "items.safetensors")["ids.weight"]
    np.testing.assert_array_equal(stored["ids.weight"], own)
    gates = artifact.manifest.training["gates"]
    assert 0 < gates["entropy"] <= gates["largest_entropy"] == pytest.approx(math.log(4), abs=1e-6)
    assert gates["variance_between_users"] > 0


def test_users_have_gates_of_their_own_whoever_shares_their_batch(artifact: Artifact) -> None:
    encoder = artifact.encoder
    gates_UE = gates_of(encoder, [np.asarray(rows) for rows in HISTORIES])
    assert gates_UE.std(0).max() > 1e-6
    prompts = [encoder.prepare(rows) for rows in HISTORIES]
    together = encoder.encode(prompts)
    np.testing.assert_allclose(together, [encoder.encode([prompt])[0] for prompt in prompts], atol=1e-5)
    swapped = list(prompts[::-1])
    np.testing.assert_allclose(encoder.encode(swapped)[::-1], together, atol=1e-5)


def test_the_gate_moves_the_vector_of_the_same_prompt(artifact: Artifact) -> None:
    encoder = artifact.encoder
    backbone = cast(GatedBackbone, encoder.backbone)
    assert backbone.router is not None
    with torch.no_grad():
        for part in backbone.modules():
            if isinstance(part, ExpertMap):
                nn.init.normal_(part.up_OR, std=0.1)
    plain = encoder.encode([encoder.prepare([1, 2, 3])])
    other = encoder.encode([encoder.prepare([1, 2, 3], np.full(32, 5.0, np.float32) * np.arange(32))])
    assert np.abs(plain - other).max() > 1e-4


def test_free_titles_have_no_say_in_the_gate(artifact: Artifact) -> None:
    encoder = artifact.encoder
    (free,) = encoder.read_titles(["red lamp 0"])
    state = cast(HistoryState, encoder.history_state)
    given: list[list[int | FreeItem]] = [[4, free, 6], [4, 6], [free]]
    states_BC = state([encoder.prepare(history) for history in given])
    torch.testing.assert_close(states_BC[0], states_BC[1])
    assert not states_BC[2].any(), "the mean state"


def test_later_items_are_in_no_gate_of_training(artifact: Artifact) -> None:
    encoder: UserEncoder = artifact.encoder
    recipe = get_recipe("ilora")
    assert isinstance(recipe.method, DenseSettings)
    module = RetrievalModule(encoder, recipe.method.objective, popularity_N=np.ones(20, np.int64))
    assert module.last_only
    conditions = [
        module.collate([Window(np.asarray(rows), last_only=True)]).prompts.condition_BC
        for rows in ([1, 2, 3, 4], [1, 2, 3, 9], [1, 2, 5, 4])
    ]
    first, target, read = (condition for condition in conditions if condition is not None)
    assert torch.equal(first, target), "the target is not in it"
    assert not torch.allclose(first, read), "what is read is"


def test_what_lacks_a_gate_is_refused_and_never_served_as_the_bare_model(artifact: Artifact) -> None:
    with conditioned_on(None), pytest.raises(AdapterError, match="none was given"):
        artifact.encoder.backbone(inputs_embeds=torch.zeros(1, 2, HIDDEN))
    with pytest.raises(AdapterError, match="need gates of as many rows"), gated_by(torch.ones(2, 2)):
        expert_map()(torch.zeros(1, 2, 6))


def test_an_artifact_without_its_id_model_is_refused(folder: Path) -> None:
    (folder / "parts" / "history_state.safetensors").rename(folder / "parts" / "gone")
    try:
        with pytest.raises(ArtifactError, match=r"history_state\.safetensors"):
            load_artifact(folder)
    finally:
        (folder / "parts" / "gone").rename(folder / "parts" / "history_state.safetensors")


def test_bare_is_the_backbone_without_experts(artifact: Artifact) -> None:
    bare = adapter_of("ilora").bare(artifact.encoder.backbone)
    assert not any(isinstance(part, ExpertMap | Router) for part in bare.modules())
    assert bare(inputs_embeds=torch.zeros(1, 2, HIDDEN)).last_hidden_state.shape == (1, 2, HIDDEN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["requires="], "items.frozen needs requires"),
        (["requires=", "items.frozen=false"], "gated by the state of an id model"),
        (["history.form=text", "items.frozen=false"], "gated by the state of an id model"),
        (["adapter.experts=3"], "does not divide adapter.rank=8"),
        (["adapter.kind=lora", "adapter.gates=uniform"], "adapter.gates has no effect"),
    ],
)
def test_gates_that_cannot_be_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_recipe("ilora", settings)


def test_methods_that_write_have_no_gates() -> None:
    with pytest.raises(RecipeError, match="method 'bigrec' does not give it"):
        get_recipe("bigrec", ["adapter.kind=ilora"])


def test_states_are_standardised_on_training_histories(artifact: Artifact, ring: Dataset) -> None:
    state = cast(HistoryState, artifact.encoder.history_state)
    limit = artifact.encoder.spec.history.limit
    rows = [rows for rows in leave_one_out(ring).train_rows() if len(rows) <= limit]
    states_BC = state([artifact.encoder.prepare(history.tolist()) for history in rows])
    assert 0.3 < float(states_BC.std()) < 3
    assert float(states_BC.std(0).min()) > 1e-3, "users differ in every direction"


def test_half_precision_keeps_the_gates_and_nearly_the_vectors(artifact: Artifact, folder: Path) -> None:
    half = load_artifact(folder, precision="bf16").encoder
    whole, rounded = (model.encode([model.prepare(rows) for rows in HISTORIES]) for model in (artifact.encoder, half))
    cosines = (whole * rounded).sum(1) / np.linalg.norm(whole, axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosines.min() > 0.98
    histories = [np.asarray(rows) for rows in HISTORIES]
    np.testing.assert_allclose(gates_of(artifact.encoder, histories), gates_of(half, histories), atol=0.02)
