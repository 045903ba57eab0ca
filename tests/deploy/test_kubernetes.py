"""Kubernetes manifests: valid against the official schemas (unknown fields refused), and true to the service."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.http.uvicorn_adapter import LAST_ANSWERS_S
from service.settings import Settings, load_settings
from tests.deploy.prometheus import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
VERSION = "1.37"
NOT_OF_KUBERNETES = {"Kustomization", "ServiceMonitor"}  # no official schema has them
MARGIN_S = 5  # between our own end and Kubernetes' kill -9


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def manifests() -> list[Path]:
    """Every file that holds a whole object (the patch and the values of a chart do not)."""
    partial = {FOLDER / "gpu" / "deployment.yaml", FOLDER / "monitoring" / "prometheus-adapter-values.yaml"}
    return [path for path in sorted(FOLDER.rglob("*.yaml")) if path not in partial]


def one(path: str) -> dict[str, Any]:
    (found,) = documents(FOLDER / path)
    return found


def merged(base: Any, patch: Any) -> Any:
    """What kustomize makes of a strategic merge patch: lists of named things are merged by name."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {key: merged(base[key], patch[key]) if key in base and key in patch else {**base, **patch}[key]
                for key in {**base, **patch}}  # fmt: skip
    if isinstance(base, list) and isinstance(patch, list) and all("name" in each for each in [*base, *patch]):
        named = {each["name"]: each for each in base}
        for each in patch:
            named[each["name"]] = merged(named.get(each["name"], {}), each)
        return list(named.values())
    return copy.deepcopy(patch)


def deployments() -> dict[str, dict[str, Any]]:
    base = one("base/deployment.yaml")
    return {"cpu": base, "gpu": merged(base, one("gpu/deployment.yaml"))}


@pytest.mark.parametrize("path", manifests(), ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_manifest_is_valid_against_the_official_schemas(path: Path) -> None:
    for document in documents(path):
        if document["kind"] not in NOT_OF_KUBERNETES:
            kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_deployment_with_the_gpu_patch_is_valid_and_asks_for_a_gpu() -> None:
    gpu = deployments()["gpu"]
    kubernetes_validate.validate(gpu, VERSION, strict=True)
    (container,) = gpu["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["readinessProbe"] and container["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_mistake_would_be_seen() -> None:
    wrong = deployments()["cpu"]
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_settings_are_accepted_and_leave_time_to_drain(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = deployments()[kind]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = {**one("base/settings.yaml")["data"], **{each["name"]: each["value"] for each in container.get("env", ())}}
    secrets = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}["secrets"]
    (tmp_path / "store-url").write_text("redis://:pass-word@redis:6379/0\n")
    for name, value in given.items():
        monkeypatch.setenv(name, value.replace(secrets, str(tmp_path)))
    settings: Settings = load_settings()
    ours = settings.shutdown_delay_seconds + settings.drain_seconds + LAST_ANSWERS_S
    assert settings.store == "redis://:pass-word@redis:6379/0"
    assert pod["terminationGracePeriodSeconds"] >= ours + MARGIN_S
    # A service called anyo would otherwise bring ANYO_PORT=tcp://… into the environment.
    assert pod["enableServiceLinks"] is False
    noticed = container["readinessProbe"]["periodSeconds"] * container["readinessProbe"]["failureThreshold"]
    assert settings.shutdown_delay_seconds >= noticed, "requests are accepted until readiness has been seen to be red"


def pods() -> dict[str, dict[str, Any]]:
    """The pod of everything that runs, by the name of what makes it."""
    kinds = ("Deployment", "StatefulSet", "Job")
    found = [each for path in manifests() for each in documents(path) if each["kind"] in kinds]
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in found}


def test_every_container_is_confined_and_takes_secrets_from_secrets_only() -> None:
    assert pods().keys() == {"anyo", "redis", "anyo-demo"}
    for name, pod in pods().items():
        assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True, name
        for container in pod["containers"]:
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}, name
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert not re.search(r":(latest|\d+)(-|$)", container["image"]), f"{container['image']} is a moving tag"
    keys = {
        item["key"]
        for pod in pods().values() for volume in pod.get("volumes", ()) if "secret" in volume
        for item in volume["secret"]["items"] if volume["secret"]["secretName"] == "anyo-secrets"
    }  # fmt: skip
    page = (ROOT / "docs" / "serving" / "kubernetes.md").read_text()
    assert keys == {"store-url", "redis.conf"} and all(f"--from-literal={key}=" in page for key in keys)
    text = "".join(path.read_text() for path in FOLDER.rglob("*.yaml"))
    assert not re.search(r"rediss?://\S*:\S+@|kind: Secret\b", text), "a secret, or the place for one, is in a manifest"


def test_nothing_talks_to_anything_that_no_policy_allows() -> None:
    policies = {
        each["metadata"]["name"]: each["spec"]
        for path in manifests() for each in documents(path) if each["kind"] == "NetworkPolicy"
    }  # fmt: skip
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    labels = {"anyo": one("base/deployment.yaml")["spec"]["template"]["metadata"]["labels"]}
    labels["redis"] = documents(FOLDER / "demo" / "redis.yaml")[1]["spec"]["template"]["metadata"]["labels"]
    for name, given in labels.items():
        assert policies[name]["podSelector"]["matchLabels"] == given
    (rule,) = policies["redis"]["ingress"]
    assert [each["podSelector"]["matchLabels"] for each in rule["from"]] == [labels["anyo"]]
    assert "egress" not in policies["redis"] and len(policies["anyo"]["egress"]) == 2
    (into,) = policies["anyo"]["ingress"]
    ports = {port["name"] for container in pods()["anyo"]["containers"] for port in container["ports"]}
    assert {port["port"] for port in into["ports"]} <= ports


def test_probes_ask_what_the_service_answers_and_the_image_is_run_as_it_was_built() -> None:
    pod = deployments()["cpu"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/readyz"
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"EXPOSE {container['ports'][0]['containerPort']}" in dockerfile
    assert f"USER {pod['securityContext']['runAsUser']}" in dockerfile
    assert "cpu" in container["resources"]["limits"], "the number of threads follows from it"


def test_everything_refers_to_something_that_is_there() -> None:
    for path in FOLDER.rglob("kustomization.yaml"):
        listed = one(str(path.relative_to(FOLDER)))
        for name in [*listed["resources"], *(patch["path"] for patch in listed.get("patches", ()))]:
            assert (path.parent / name).exists(), (path, name)
    base = {path.name for path in (FOLDER / "base").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(one("base/kustomization.yaml")["resources"]) == base
    labels = one("base/deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    assert one("base/service.yaml")["spec"]["selector"] == labels
    assert one("base/disruption.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert (
        one("base/autoscaler.yaml")["spec"]["scaleTargetRef"]["name"] == one("base/deployment.yaml")["metadata"]["name"]
    )


def test_the_autoscaler_reads_a_metric_that_the_adapter_makes_of_one_of_ours() -> None:
    (rule,) = one("monitoring/prometheus-adapter-values.yaml")["rules"]["custom"]
    (metric,) = one("base/autoscaler.yaml")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    series = re.match(r"\w+", rule["seriesQuery"])
    assert series and re.fullmatch(rule["name"]["matches"], series.group())
    assert f"| `{series.group()}` |" in (ROOT / "docs" / "operations" / "metrics.md").read_text()


def test_the_service_monitor_scrapes_the_service_under_a_job_that_the_rules_select() -> None:
    monitor, service = one("monitoring/servicemonitor.yaml"), one("base/service.yaml")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]].startswith("anyo")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]} and endpoint["path"] == "/metrics"
