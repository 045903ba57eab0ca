"""Manifests for KubeRay: pods valid against the official schemas, fields those of its resources, commands and settings
those of the service."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

import service.ray_serve.__main__
from service.settings import load_settings
from tests.deploy.prometheus import ROOT

VERSION = "1.37"
# Fields of the resources of ray.io/v1 (KubeRay 1.7). Their pods are checked against Kubernetes' own schema.
CLUSTER, GROUP, HEAD, WORKERS, JOB = (
    frozenset(names.split())
    for names in (
        "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
        "headServiceAnnotations historyServerOptions managedBy networkPolicy rayVersion suspend tlsOptions "
        "upgradeStrategy workerGroupSpecs",
        "labels rayStartParams resources template",
        "enableIngress headService ingressOptions serviceType",
        "groupName idleTimeoutSeconds maxReplicas minReplicas numOfHosts priority replicas scaleStrategy suspend",
        "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
        "entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec "
        "runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend "
        "ttlSecondsAfterFinished",
    )
)
MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}


def documents() -> dict[str, dict[str, Any]]:
    """All objects by their kind."""
    found = [
        each
        for path in sorted((ROOT / "deploy" / "ray").glob("*.yaml"))
        for each in yaml.safe_load_all(path.read_text())
    ]
    assert len({each["kind"] for each in found}) == len(found)
    return {each["kind"]: each for each in found}


def pods() -> list[dict[str, Any]]:
    cluster = documents()["RayCluster"]["spec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def unknown(cluster: dict[str, Any], job: dict[str, Any]) -> set[str]:
    """Return fields that the resources do not have, and those that they ask for and that are missing."""
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    found = (cluster.keys() - CLUSTER) | (head.keys() - HEAD - GROUP) | (job.keys() - JOB)
    for group in groups:
        found |= group.keys() - WORKERS - GROUP
        found |= {"groupName", "minReplicas", "maxReplicas", "template"} - group.keys()
        found |= {
            f"rayStartParams.{name}" for name, text in group["rayStartParams"].items() if not isinstance(text, str)
        }
    return found | ({"template"} - head.keys())


def test_objects_of_kubernetes_and_all_pods_are_valid() -> None:
    for kind, document in documents().items():
        if kind in ("RayCluster", "RayJob"):
            assert document["apiVersion"] == "ray.io/v1"
        else:
            kubernetes_validate.validate(document, VERSION, strict=True)
    for pod in pods():
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod}
        kubernetes_validate.validate(whole, VERSION, strict=True)
        (container,) = pod["spec"]["containers"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True and pod["spec"]["enableServiceLinks"] is False
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}


def test_fields_of_the_resources_exist_and_a_mistake_would_be_seen() -> None:
    found = documents()
    cluster, job = found["RayCluster"]["spec"], found["RayJob"]["spec"]
    assert unknown(cluster, job) == set() and job["submissionMode"] in MODES
    assert unknown({**cluster, "headGroup": {}}, {**job, "entryPoint": ""}) == {"headGroup", "entryPoint"}
    assert job["clusterSelector"] == {"ray.io/cluster": found["RayCluster"]["metadata"]["name"]}


def test_the_version_is_the_pinned_one() -> None:
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")]
    assert pinned == [f"ray=={documents()['RayCluster']['spec']['rayVersion']}"]


def test_command_and_settings_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = documents()
    words = shlex.split(found["RayJob"]["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "service.ray_serve"]
    command: Any = typer.main.get_command(service.ray_serve.__main__.app)
    given = command.make_context("serve", words[3:]).params
    (tmp_path / "store-url").write_text("redis://:pass-word@redis:6379/0\n")
    (pod, *_) = pods()
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    for name, value in found["ConfigMap"]["data"].items():
        monkeypatch.setenv(name, value.replace(mounts["secrets"], str(tmp_path)))
    settings = load_settings(artifacts=(given["artifact"],), host=given["host"])
    assert settings.store.startswith("redis") and given["ingresses"] > 1
    assert given["artifact"].is_relative_to(mounts["artifacts"]) and given["address"] == "auto"
