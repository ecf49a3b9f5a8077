"""Prometheus metrics of one process: base units, bounded labels, never a team, key, user or job id.

The helpers are the vocabulary: code says `metrics.provider_answered(...)` and knows no collector. With several worker
processes, every worker's page tells of all of them: they keep their figures in files of one folder, which the first
process makes and its workers inherit.
"""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Final, Literal

import psutil

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"

if FOLDER not in os.environ and os.environ.get("WORKERS", "").strip() not in ("", "1"):
    # The library reads it once, when it is imported.
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="saas-litellm-metrics-")
    atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)

from prometheus_client import (  # noqa: E402
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead  # noqa: E402

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SLOW = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

# Anybody may send a method of their own making.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# Provider names come from the catalog, which admins fill in: past this many, the label says "other".
_MOST_PROVIDERS = 64

Limit = Literal["requests", "tokens"]
ProviderOutcome = Literal["ok", "error", "rejected", "timeout"]
ChoreOutcome = Literal["done", "failed", "put_off"]
WebhookOutcome = Literal["delivered", "refused", "unreachable", "private_target"]

registry = CollectorRegistry()

http_request_seconds = Histogram(
    "saas_http_request_seconds",
    "Time to answer an HTTP request.",
    ["method", "route", "status"],
    buckets=_FAST + _SLOW[6:],
    registry=registry,
)
append_seconds = Histogram(
    "saas_append_seconds", "Time of one append to the journal.", buckets=_FAST, registry=registry
)
append_commands = Histogram(
    "saas_append_commands", "Commands carried out by one append.", buckets=_COUNTS, registry=registry
)
append_events = Counter("saas_append_events", "Events appended to the journal.", registry=registry)
append_conflicts = Counter(
    "saas_append_conflicts", "Batches decided again because a stream had moved.", registry=registry
)
queue_commands = Gauge(
    "saas_queue_commands",
    "Commands waiting for the ledger.",
    multiprocess_mode="livesum",
    registry=registry,
)
projection_lag_seconds = Gauge(
    "saas_projection_lag_seconds",
    "Age of the oldest event that the read models do not show yet.",
    multiprocess_mode="livemax",
    registry=registry,
)
projection_lag_events = Gauge(
    "saas_projection_lag_events",
    "Events that the read models do not show yet.",
    multiprocess_mode="livemax",
    registry=registry,
)
projection_stopped = Gauge(
    "saas_projection_stopped",
    "1 while an event that cannot be projected stops the read models.",
    multiprocess_mode="livemax",
    registry=registry,
)
provider_seconds = Histogram(
    "saas_provider_seconds",
    "Time of one attempt at a provider.",
    ["provider", "outcome"],
    buckets=_SLOW,
    registry=registry,
)
overhead_seconds = Histogram(
    "saas_call_overhead_seconds",
    "Time of an LLM call that was not spent waiting for the provider.",
    buckets=_FAST,
    registry=registry,
)
limit_rejections = Counter("saas_limit_rejections", "Calls refused by a rate limit.", ["limit"], registry=registry)
limits_degraded = Gauge(
    "saas_limits_degraded",
    "1 while Redis is out of reach and each process keeps the rate limits itself.",
    multiprocess_mode="livemax",
    registry=registry,
)
webhook_attempts = Counter("saas_webhook_attempts", "Attempts to deliver a webhook.", ["outcome"], registry=registry)
webhook_seconds = Histogram(
    "saas_webhook_seconds", "Time of one attempt to deliver a webhook.", buckets=_SLOW, registry=registry
)
chore_seconds = Histogram(
    "saas_chore_seconds",
    "Time of one round of a chore that is done by the clock.",
    ["chore", "outcome"],
    buckets=_SLOW,
    registry=registry,
)
chore_things = Counter(
    "saas_chore_things", "What chores have done: refills, expirations, ...", ["chore"], registry=registry
)
replay_mismatches = Counter(
    "saas_replay_mismatches",
    "Findings of audits: what the replay and the tables disagree on.",
    registry=registry,
)

if FOLDER not in os.environ:
    # These describe a single process, so they have no place on a page that tells of several.
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)

_providers: set[str] = set()


def request_answered(method: str, route: str, status: int, seconds: float) -> None:
    """Count an answered request; `route` is the route's template, never the path that was asked for."""
    label = method if method in _METHODS else "other"
    http_request_seconds.labels(label, route, str(status)).observe(seconds)


def appended(*, commands: int, events: int, seconds: float) -> None:
    """Count one append to the journal."""
    append_seconds.observe(seconds)
    append_commands.observe(commands)
    append_events.inc(events)


def decided_again() -> None:
    """Count a batch that was decided on a stale stream."""
    append_conflicts.inc()


def queued(commands: int) -> None:
    """Set how many commands wait for the ledger."""
    queue_commands.set(commands)


def projected(*, lag_events: int, lag_seconds: float) -> None:
    """Set how far the read models are behind the journal."""
    projection_lag_events.set(lag_events)
    projection_lag_seconds.set(lag_seconds)


def projections_stopped(stopped: bool) -> None:
    """Say whether a poison event stops the projections."""
    projection_stopped.set(int(stopped))


def provider_answered(provider: str, outcome: ProviderOutcome, seconds: float) -> None:
    """Count one attempt at a provider."""
    if len(_providers) < _MOST_PROVIDERS:
        _providers.add(provider)
    label = provider if provider in _providers else "other"
    provider_seconds.labels(label, outcome).observe(seconds)


def call_overhead(seconds: float) -> None:
    """Count the time that a call spent with us rather than at the provider."""
    overhead_seconds.observe(seconds)


def limit_rejected(limit: Limit) -> None:
    """Count a call refused by a rate limit."""
    limit_rejections.labels(limit).inc()


def limits_kept_here(degraded: bool) -> None:
    """Say whether this process keeps the limits itself because Redis is away."""
    limits_degraded.set(int(degraded))


def webhook_attempted(outcome: WebhookOutcome, seconds: float) -> None:
    """Count one attempt to deliver a webhook."""
    webhook_attempts.labels(outcome).inc()
    webhook_seconds.observe(seconds)


def chore_ended(chore: str, outcome: ChoreOutcome, seconds: float, *, things: int = 0) -> None:
    """Count a round of a chore, and what it has done."""
    chore_seconds.labels(chore, outcome).observe(seconds)
    chore_things.labels(chore).inc(things)


def replay_disagreed(findings: int) -> None:
    """Count the findings of an audit."""
    replay_mismatches.inc(findings)


def render() -> bytes:
    """Return the metrics in Prometheus's text format (`CONTENT_TYPE`)."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return generate_latest(registry)
    _forget_the_dead(Path(folder))
    everyone = CollectorRegistry()
    MultiProcessCollector(everyone, folder)  # type: ignore[no-untyped-call]
    return generate_latest(everyone)


def _forget_the_dead(folder: Path) -> None:
    """What a process counted stays; how things stand with it is over when it is gone."""
    for file in folder.glob("gauge_live*.db"):
        pid = re.search(r"_(\d+)\.db$", file.name)
        if pid is not None and not psutil.pid_exists(int(pid[1])):
            mark_process_dead(int(pid[1]), str(folder))  # type: ignore[no-untyped-call]
