"""`python -m index` on a small artifact folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from index import Catalog, open_index
from index.cli import app
from index.kinds import index_class, kind_names


@pytest.fixture
def artifact(tmp_path):
    rng = np.random.default_rng(0)
    save_file(
        {"item_vectors": rng.standard_normal((30, 4)).astype(np.float32)},
        tmp_path / "item_vectors.safetensors",
    )
    names = tuple(f"i{row}" for row in range(30))
    Catalog(names, names, ((),) * 30, np.arange(30), "train").write(tmp_path / "catalog.parquet")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_build_then_inspect_then_tune(artifact):
    built = run("build", artifact, "--json")
    assert built.exit_code == 0, built.output
    assert json.loads(built.stdout)["size"] == 30 == open_index(artifact / "index").size
    seen = json.loads(run("inspect", artifact, "--json").stdout)
    assert (seen["dim"], seen["recall_at_10"]) == (4, 1.0)
    assert seen["catalog"]["most_popular"] == ["i29", "i28", "i27"]
    tuned = json.loads(run("tune", artifact, "--repeats", 3, "--json").stdout)
    assert "no parameter to tune" in tuned["advice"] and tuned["milliseconds_one_query"] > 0
    assert "kind" in run("inspect", artifact / "index").stdout


def test_errors_are_one_line_and_exit_with_one(artifact):
    missing = run("build", artifact / "nowhere")
    assert missing.exit_code == 1 and "item_vectors.safetensors cannot be read" in missing.stderr
    assert run("inspect", artifact).exit_code == 1
    run("build", artifact)
    Catalog(("a",), ("A",), ((),), np.array([1]), "train").write(artifact / "catalog.parquet")
    mismatch = run("inspect", artifact)
    assert mismatch.exit_code == 1 and "catalog.parquet holds 1 items, the index beside it 30" in mismatch.stderr


def test_every_kind_is_built_inspected_and_measured(artifact):
    listed = json.loads(run("kinds", "--json").stdout)
    assert list(listed) == kind_names()
    for kind, parameters in listed.items():
        settings = [f"--set={name}={value}" for name, value in parameters.items()]
        built = run("build", artifact, "--kind", kind, *settings, "--out", artifact / kind, "--json")
        assert built.exit_code == 0, built.output
        seen = json.loads(run("inspect", artifact / kind, "--json").stdout)
        assert (seen["kind"], seen["parameters"]) == (kind, parameters)
        tuned = json.loads(run("tune", artifact / kind, "--repeats", 2, "--json").stdout)
        assert ("efforts" in tuned) == (not index_class(kind).exact)
        for each in tuned.get("efforts", []):
            assert each["milliseconds"] > 0 and 0 < each["recall"] <= 1


def test_settings_that_are_not_allowed_and_an_artifact_that_would_not_load_are_refused(artifact):
    odd = run("build", artifact, "--kind", "hnsw", "--set", "links=x")
    assert odd.exit_code == 1 and "index kind 'hnsw': links: " in odd.stderr
    assert "kinds are flat" in run("build", artifact, "--kind", "odd").stderr
    run("build", artifact)
    (artifact / "manifest.json").write_text("{}")
    assert run("build", artifact).exit_code == 0, "the same bytes"
    refused = run("build", artifact, "--kind", "hnsw")
    assert refused.exit_code == 1 and "training rewrite" in refused.stderr and "index.kind=hnsw" in refused.stderr
    assert open_index(artifact / "index").spec.kind == "flat"
