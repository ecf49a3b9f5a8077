"""What happens inside a job: calls begin and end, labels are merged, and facts are recorded whatever was decided."""

from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from domain.catalog import Target
from domain.errors import NotFound, OutOfBounds
from domain.event import Event
from domain.job import (
    Attempt,
    CallAttemptFailed,
    CallFailed,
    CallFinished,
    EndedCall,
    Job,
    JobCancelled,
    MergeMetadata,
    MetadataMerged,
    create_job,
    evolve,
    fail_call,
    finish_call,
    merge_metadata,
)
from domain.pricing import Price
from domain.team import TeamDeleted
from tests.domain.scene import (
    BY_DOLLARS,
    CALL,
    CHAT,
    CREATED,
    JOB,
    NOON,
    RESEARCH,
    SECOND_CALL,
    TEAM,
    WHO,
    WHOSE,
    after,
    create,
    fail,
    finish,
    started,
)
from tests.spec import given

CANCELLED = JobCancelled(
    at=NOON,
    job_id=JOB,
    **WHOSE,
    credit_applied=False,
    credits_charged=0,
    credits_remaining=10,
    total_calls=1,
    duration_seconds=0,
)
FINISHED = CallFinished(
    at=NOON,
    job_id=JOB,
    **WHOSE,
    call_id=CALL,
    target="chat",
    alias="chat",
    provider="openai",
    resolved_model="openai/chat-model",
    prompt_tokens=1000,
    completion_tokens=500,
    usage_estimated=False,
    price_input_usd_per_million=Decimal("2.50"),
    price_output_usd_per_million=Decimal(10),
    unpriced=False,
    markup_percentage=Decimal(0),
    input_cost_usd=Decimal("0.0025"),
    output_cost_usd=Decimal("0.005"),
    provider_cost_usd=Decimal("0.0075"),
    client_cost_usd=Decimal("0.0075"),
    latency_ms=800,
    finish_reason="stop",
    partial=False,
    response_sha256=None,
    response_bytes=0,
)

WHY_NOT: dict[str, Any] = {
    "target": "chat",
    "resolved_model": "openai/chat-model",
    "outcome": "error",
    "http_status": 503,
    "error": "overloaded",
    "latency_ms": 40,
}
OVERLOADED = Attempt(**WHY_NOT)
ATTEMPTED = CallAttemptFailed(at=NOON, job_id=JOB, call_id=CALL, **WHY_NOT)


def failed(**more: Any) -> CallFailed:
    said: dict[str, Any] = {
        "error": "provider_error",
        "provider_error": None,
        "http_status": None,
        "latency_ms": None,
        **more,
    }
    return CallFailed(at=NOON, job_id=JOB, **WHOSE, call_id=CALL, **said)


def label(**metadata: Any) -> MergeMetadata:
    return MergeMetadata(**WHO, metadata=metadata)


def test_a_job_is_created_with_its_teams_organization_on_it() -> None:
    given(TEAM).when(create_job, create()).then(CREATED).leaving(Job, status="pending", held_credits=0)


def test_a_job_created_twice_is_created_once() -> None:
    given(TEAM, CREATED).when(create_job, create()).then_nothing()


def test_a_team_that_is_not_there_has_no_jobs() -> None:
    given().when(create_job, create()).then_refused(NotFound, resource="team")
    deleted = TeamDeleted(at=NOON, team_id=RESEARCH)
    given(TEAM, deleted).when(create_job, create()).then_refused(NotFound, resource="team")


def test_labels_of_a_new_job_have_a_limit() -> None:
    given(TEAM).when(create_job, create(metadata={"note": "x" * 10_240})).then_refused(
        OutOfBounds, field="metadata", message="metadata is larger than 10240 bytes"
    )


def test_an_answer_is_recorded_with_tokens_prices_and_costs() -> None:
    story = given(CREATED, started()).when(finish_call, finish(prompt_tokens=1000, completion_tokens=500))
    story.then(FINISHED).leaving(
        Job,
        status="in_progress",
        running={},
        successful_calls=1,
        failed_calls=0,
        tokens=1500,
        provider_cost_usd=Decimal("0.0075"),
        client_cost_usd=Decimal("0.0075"),
        latency_ms=800,
        latencies=1,
    )


def test_markup_is_paid_by_the_team_and_not_to_the_provider() -> None:
    marked_up = replace(BY_DOLLARS, markup_percentage=Decimal(50))
    story = given(CREATED, started(terms=marked_up)).when(
        finish_call, finish(prompt_tokens=1000, completion_tokens=500)
    )
    story.leaving(Job, provider_cost_usd=Decimal("0.0075"), client_cost_usd=Decimal("0.01125"))


def test_a_partial_answer_is_an_answer() -> None:
    story = given(CREATED, started()).when(finish_call, finish(partial=True, finish_reason="cancelled"))
    story.leaving(Job, successful_calls=1, failed_calls=0, tokens=300)


def test_targets_that_could_not_answer_are_on_record_before_the_one_that_did() -> None:
    spare = Target(name="spare", alias=None, provider="groq", model="llama", price=Price(Decimal(1), Decimal(1)))
    story = given(CREATED, started(targets=(CHAT, spare))).when(finish_call, finish(target=1, attempts=(OVERLOADED,)))
    attempt, answer = story.decided
    assert ATTEMPTED == attempt
    assert isinstance(answer, CallFinished)
    assert ("spare", None, "groq/llama") == (answer.target, answer.alias, answer.resolved_model)
    story.leaving(Job, successful_calls=1, failed_calls=0, client_cost_usd=Decimal("0.0003"))


def test_a_call_remembers_whom_it_asked_in_vain() -> None:
    story = given(CREATED, started()).when(fail_call, fail(attempts=(OVERLOADED,)))
    story.then(ATTEMPTED, failed())
    assert [(OVERLOADED,)] == [call.attempts for call in story.the(Job).ended]


def test_a_call_that_ended_does_not_end_again() -> None:
    story = given(CREATED, started(), FINISHED)
    story.when(finish_call, finish(completion_tokens=9)).then_nothing()
    story.when(fail_call, fail()).then_nothing()


def test_a_call_that_never_began_cannot_end() -> None:
    story = given(CREATED, started())
    story.when(finish_call, finish(SECOND_CALL)).then_refused(NotFound, resource="call")
    story.when(fail_call, fail(SECOND_CALL)).then_refused(NotFound, resource="call")


def test_a_job_that_never_was_has_no_calls_and_no_labels() -> None:
    given().when(finish_call, finish()).then_refused(NotFound, resource="job")
    given().when(fail_call, fail()).then_refused(NotFound, resource="job")
    given().when(merge_metadata, label(stage=1)).then_refused(NotFound, resource="job")


def test_a_failed_call_is_free_for_the_team() -> None:
    story = given(CREATED, started()).when(fail_call, fail(provider_error="boom", http_status=500, latency_ms=70))
    story.then(failed(provider_error="boom", http_status=500, latency_ms=70))
    story.leaving(
        Job, failed_calls=1, rejected_calls=0, tokens=0, client_cost_usd=Decimal(0), latency_ms=70, latencies=1
    )


def test_an_answer_that_broke_off_costs_us_and_not_the_team() -> None:
    broken = fail(target=0, prompt_tokens=1000, completion_tokens=100)
    story = given(CREATED, started()).when(fail_call, broken)
    story.then(failed(provider="openai", resolved_model="openai/chat-model", provider_cost_usd=Decimal("0.0035")))
    story.leaving(Job, tokens=0, client_cost_usd=Decimal(0), provider_cost_usd=Decimal("0.0035"))


def test_a_request_that_the_provider_refused_counts_as_failed_and_as_rejected() -> None:
    story = given(CREATED, started()).when(fail_call, fail(error="request_rejected"))
    story.leaving(Job, failed_calls=1, rejected_calls=1, latencies=0)


def test_an_answer_is_recorded_even_if_the_job_was_cancelled_meanwhile() -> None:
    story = given(CREATED, started(), CANCELLED).when(finish_call, finish(prompt_tokens=1000, completion_tokens=500))
    story.then(FINISHED).leaving(Job, status="cancelled", tokens=1500, credits_charged=0, running={})


def test_a_failure_is_recorded_even_if_the_job_was_cancelled_meanwhile() -> None:
    given(CREATED, started(), CANCELLED).when(fail_call, fail()).then(failed()).leaving(Job, status="cancelled")


def test_a_job_knows_of_its_calls_all_that_explains_their_price() -> None:
    story = given(CREATED, started()).when(finish_call, finish(prompt_tokens=1000, completion_tokens=500))
    call = EndedCall(
        call_id=CALL,
        model="chat",
        purpose=None,
        streaming=False,
        created_at=NOON,
        attempts=(),
        latency_ms=800,
        provider="openai",
        resolved_model="openai/chat-model",
        alias="chat",
        prompt_tokens=1000,
        completion_tokens=500,
        price_input_usd_per_million=Decimal("2.50"),
        price_output_usd_per_million=Decimal(10),
        input_cost_usd=Decimal("0.0025"),
        output_cost_usd=Decimal("0.005"),
        provider_cost_usd=Decimal("0.0075"),
        client_cost_usd=Decimal("0.0075"),
        finish_reason="stop",
    )
    story.leaving(Job, ended=(call,), total_calls=1, models_used=("chat",))


def test_labels_are_merged_and_those_not_named_stay() -> None:
    story = given(CREATED).when(merge_metadata, label(a=1, b=None))
    story.then(MetadataMerged(at=NOON, job_id=JOB, metadata={"a": 1, "b": None}))
    story.when(merge_metadata, label(b=2, c={"d": []})).leaving(Job, metadata={"a": 1, "b": 2, "c": {"d": []}})


def test_merging_nothing_changes_nothing() -> None:
    given(CREATED).when(merge_metadata, label()).then_nothing()


def test_labels_of_an_ended_job_can_still_change() -> None:
    given(CREATED, CANCELLED).when(merge_metadata, label(note="late")).leaving(Job, metadata={"note": "late"})


@pytest.mark.parametrize("key", ["note", "result"])
def test_labels_stay_small_also_in_small_steps(key: str) -> None:
    story = given(CREATED).when(merge_metadata, label(first="x" * 6000))
    story.when(merge_metadata, label(**{key: "x" * 11_000})).then_refused(
        OutOfBounds, field="metadata", message="metadata is larger than 10240 bytes"
    )
    story.when(merge_metadata, label(second="x" * 6000)).then_refused(
        OutOfBounds, field="metadata", message="metadata is larger than 10240 bytes"
    )


def test_calls_and_labels_keep_a_job_awake() -> None:
    given(CREATED).leaving(Job, active_at=NOON)
    busy = given(CREATED, started())
    busy.when(finish_call, finish(at=after(hours=2))).leaving(Job, active_at=after(hours=2))
    busy.when(fail_call, fail(at=after(hours=3))).leaving(Job, active_at=after(hours=3))
    given(CREATED).when(merge_metadata, MergeMetadata(**{**WHO, "at": after(hours=1)}, metadata={"a": 1})).leaving(
        Job, active_at=after(hours=1)
    )


@pytest.mark.parametrize("end", [FINISHED, failed(), ATTEMPTED], ids=["finished", "failed", "attempted"])
def test_history_is_not_on_trial_when_a_call_ends_twice(end: Event) -> None:
    job = given(CREATED, started(), FINISHED).the(Job)
    assert job == evolve(job, end)  # type: ignore[arg-type]
