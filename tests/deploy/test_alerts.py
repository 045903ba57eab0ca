"""Rules and alerts: what promtool says of them, and that each alert fires for its fault alone and clears."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.observability.metrics import Metrics
from tests.deploy.exporter import GAINS, VALUES, Exporter, Replica
from tests.deploy.prometheus import ROOT, SHIPPED, Prometheus, faster, program, prometheus, wait_for

FACTOR = 150  # five minutes take two seconds
OK = 'anyo_requests_total{endpoint="/recommend",recipe="anyo",status="200"}'
FAILED = 'anyo_requests_total{endpoint="/recommend",recipe="anyo",status="500"}'
FAST = 'anyo_request_seconds_bucket{endpoint="/recommend",recipe="anyo",le="0.02"}'
ON_TIME = 'anyo_event_loop_lag_seconds_bucket{le="0.001"}'


@dataclass(frozen=True)
class Fault:
    """What is wrong with the first replica of a job, how many replicas it has, what else it makes fire."""

    series: Mapping[str, float | None] = field(default_factory=dict)
    down: bool = False
    young: bool = False
    replicas: int = 1
    also: frozenset[str] = frozenset()


FAULTS = {
    "AnyoNoReplica": Fault(down=True, also=frozenset({"AnyoDown"})),
    "AnyoDown": Fault(down=True, replicas=2),
    "AnyoNotReady": Fault({"anyo_ready": 0}),
    "AnyoRestarts": Fault(young=True),
    "AnyoForwardStalled": Fault({"anyo_forward_running_seconds": 20}),
    "AnyoErrorBudgetFast": Fault({OK: 80, FAILED: 20}, also=frozenset({"AnyoErrorBudgetSlow"})),
    "AnyoErrorBudgetSlow": Fault({OK: 99, FAILED: 1}),
    "AnyoDeadlines": Fault({"anyo_deadline_exceeded_total": 5}),
    "AnyoLatencyHigh": Fault({FAST: 90}),
    "AnyoEventLoopLag": Fault({ON_TIME: 2}),
    "AnyoQueueNearLimit": Fault({"anyo_queue_tokens": 60_000}),
    "AnyoRefusals": Fault({'anyo_rejected_total{reason="queue_full"}': 10}),
    "AnyoMemoryGrowth": Fault({"process_resident_memory_bytes": 1.6e9}),
    "AnyoDeviceMemory": Fault({"anyo_device_memory_bytes": 76e9}),
    "AnyoFilesNearLimit": Fault({"process_open_fds": 900}),
    # While reads go on as always: an event that is not stored is a fault of its own.
    "AnyoStoreDown": Fault({'anyo_store_up{op="write"}': 0}),
    "AnyoCacheDown": Fault({'anyo_cache_up{op="read"}': 0}),
    "AnyoMostlyPopular": Fault({'anyo_answers_total{source="popular"}': 200}),
    "AnyoArtifactsDiffer": Fault(
        {
            'anyo_artifact_info{name="shop",version="1",recipe="anyo"}': None,
            'anyo_artifact_info{name="shop",version="2",recipe="anyo"}': 1,
        },
        replicas=2,
    ),
}
HEALTHY = "anyo-healthy"


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((SHIPPED / "rules" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*arguments: str | Path) -> None:
    command = [program("promtool"), *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    promtool("check", "config", SHIPPED / "prometheus.yml")
    promtool("check", "rules", *sorted((SHIPPED / "rules").glob("*.yml")))


def test_the_rules_give_the_values_that_were_worked_out_by_hand() -> None:
    promtool("test", "rules", *sorted((SHIPPED / "tests").glob("*.yml")))


def test_every_alert_says_what_it_is_and_has_a_section_in_the_runbook() -> None:
    headings = re.findall(r"^#+ (\w+)$", (ROOT / "docs" / "operations" / "runbook.md").read_text(), flags=re.MULTILINE)
    assert sorted(FAULTS) == sorted(rule["alert"] for rule in alerts())
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]
        assert rule["annotations"]["runbook"] == f"docs/operations/runbook.md#{rule['alert'].lower()}"
        assert rule["alert"] in headings


def test_what_the_stand_in_shows_is_what_the_service_shows() -> None:
    """Every name and label that the faults are made of exists in the service."""
    metrics = Metrics()
    metrics.requests("/recommend", "anyo", "200").inc()
    metrics.request_seconds("/recommend", "anyo").observe(1)
    metrics.artifact_info("shop", "1", "anyo").set(1)
    known = {shape(line.rsplit(" ", 1)[0]) for line in metrics.page().decode().splitlines() if line[:1] != "#"}
    only_with_cuda = {("anyo_device_memory_bytes", ()), ("anyo_device_memory_limit_bytes", ())}
    assert {shape(name) for name in (*GAINS, *VALUES)} - known == only_with_cuda


def shape(series: str) -> tuple[str, tuple[str, ...]]:
    return series.split("{")[0], tuple(sorted(re.findall(r"(\w+)=", series)))


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[tuple[Prometheus, dict[str, list[Replica]]]]:
    """A Prometheus that scrapes a job for every fault, and one more that stays healthy."""
    jobs = {f"anyo-{name}": [Replica() for _ in range(fault.replicas)] for name, fault in FAULTS.items()}
    jobs[HEALTHY] = [Replica(), Replica()]
    paths = {f"{job}-{n}": replica for job, group in jobs.items() for n, replica in enumerate(group)}
    exporter = Exporter(paths)
    static = {
        job: [
            {"targets": [exporter.address], "labels": {"__metrics_path__": f"/{job}-{n}", "instance": f"{job}-{n}"}}
            for n in range(len(group))
        ]
        for job, group in jobs.items()
    }
    try:
        with prometheus(folder, static, FACTOR) as running:
            yield running, jobs
    finally:
        exporter.close()


@pytest.mark.slow
def test_every_alert_fires_for_its_fault_alone_and_clears(tmp_path: Path) -> None:
    expected = {(f"anyo-{name}", alert) for name, fault in FAULTS.items() for alert in {name, *fault.also}}
    with watched(tmp_path) as (server, jobs):
        wait_for(
            lambda: len(server.query("job_source:anyo_answers:ratio_rate5m")) == 2 * len(jobs),
            lambda: "no data: " + (tmp_path / "log").read_text(),
        )
        wait_for(lambda: not server.firing(), lambda: f"firing although all is well: {server.firing()}")
        for name, fault in FAULTS.items():
            replica = jobs[f"anyo-{name}"][0]
            replica.change(fault.series)
            replica.up, replica.young = not fault.down, fault.young
        # Waited for, not looked at once: a scrape that a busy machine misses looks like a replica that is down.
        wait_for(
            lambda: server.firing() == expected,
            lambda: f"not firing: {expected - server.firing()}; for another's fault: {server.firing() - expected}",
        )
        for group in jobs.values():
            for replica in group:
                replica.heal()
        wait_for(lambda: not server.firing(), lambda: f"still firing: {server.firing()}")


def test_the_pace_changes_durations_and_nothing_else() -> None:
    rule = {"record": "a:b:rate5m", "expr": 'rate(x{a="5m"}[5m] offset 1h) > 300', "for": "2m"}
    fast = {"record": "a:b:rate5m", "expr": 'rate(x{a="5m"}[2000ms] offset 24000ms) > 300', "for": "800ms"}
    assert faster(rule, FACTOR) == fast
