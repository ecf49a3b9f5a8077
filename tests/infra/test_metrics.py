"""The /metrics page: names, units, bounded labels."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from infra import metrics


def sample(name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def test_the_page_is_prometheus_text() -> None:
    metrics.appended(commands=3, events=5, seconds=0.002)

    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}

    assert families["saas_append_seconds"].type == "histogram"
    assert families["saas_append_events"].type == "counter"


def test_an_append_counts_its_events_commands_and_time() -> None:
    events, batches = sample("saas_append_events_total"), sample("saas_append_commands_count")

    metrics.appended(commands=3, events=5, seconds=0.002)

    assert sample("saas_append_events_total") == events + 5
    assert sample("saas_append_commands_count") == batches + 1


def test_names_carry_base_units_and_labels_carry_no_ids() -> None:
    allowed = {"method", "route", "status", "provider", "outcome", "limit", "chore", "le"}
    ours = [family for family in metrics.registry.collect() if family.name.startswith("saas_")]

    assert ours
    for family in ours:
        assert not re.search(r"_(ms|millis|milliseconds|kb|mb|minutes|hours|percent)(_|$)", family.name)
        assert {label for each in family.samples for label in each.labels} <= allowed


def test_methods_that_nobody_knows_become_other() -> None:
    for number in range(200):
        metrics.request_answered(f"MADE-UP-{number}", "none", 404, 0.1)

    family = next(each for each in metrics.registry.collect() if each.name == "saas_http_request_seconds")
    methods = {each.labels["method"] for each in family.samples}

    assert "other" in methods
    assert methods <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"}


def test_provider_names_past_the_bound_become_other() -> None:
    for number in range(200):
        metrics.provider_answered(f"made-up-{number}", "ok", 0.1)

    family = next(each for each in metrics.registry.collect() if each.name == "saas_provider_seconds")
    providers = {each.labels["provider"] for each in family.samples}

    assert len(providers) <= 65
    assert "other" in providers


def test_every_counter_counts() -> None:
    refused, private = sample("saas_limit_rejections_total", limit="tokens"), "private_target"
    tried = sample("saas_webhook_attempts_total", outcome=private)

    metrics.limit_rejected("tokens")
    metrics.webhook_attempted("private_target", 0.1)

    assert sample("saas_limit_rejections_total", limit="tokens") == refused + 1
    assert sample("saas_webhook_attempts_total", outcome=private) == tried + 1


def test_every_gauge_says_what_was_said_last() -> None:
    """In a process of its own: in this one a server of another test may be saying things, too."""
    said = """
        from infra import metrics
        metrics.queued(7)
        metrics.projected(lag_events=12, lag_seconds=0.25)
        metrics.projections_stopped(True)
        metrics.limits_kept_here(True)
        print(metrics.render().decode())
    """
    page = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(said)], capture_output=True, text=True, check=True
    ).stdout

    for line in (
        "saas_queue_commands 7.0",
        "saas_projection_lag_events 12.0",
        "saas_projection_lag_seconds 0.25",
        "saas_projection_stopped 1.0",
        "saas_limits_degraded 1.0",
    ):
        assert line in page.splitlines()


def test_several_workers_share_one_page(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    worker = "from infra import metrics; metrics.appended(commands=1, events=2, seconds=0.001)"
    page = f"{worker}; print(metrics.render().decode())"

    subprocess.run([sys.executable, "-c", worker], env=environment, check=True)
    shown = subprocess.run(
        [sys.executable, "-c", page], env=environment, check=True, capture_output=True, text=True
    ).stdout

    assert "saas_append_events_total 4.0" in shown


def test_what_a_worker_counted_outlives_it_and_its_gauges_do_not(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    worker = "from infra import metrics; metrics.queued(7); metrics.appended(commands=1, events=2, seconds=0.001)"
    page = "from infra import metrics; metrics.queued(1); print(metrics.render().decode())"

    subprocess.run([sys.executable, "-c", worker], env=environment, check=True)
    shown = subprocess.run(
        [sys.executable, "-c", page], env=environment, check=True, capture_output=True, text=True
    ).stdout

    assert "saas_append_events_total 2.0" in shown.splitlines()
    assert "saas_queue_commands 1.0" in shown.splitlines()
