--
-- PostgreSQL database dump
--

--
-- Name: app; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA app;

--
-- Name: journal; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA journal;

--
-- Name: readmodel; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA readmodel;

--
-- Name: readmodel_shadow; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA readmodel_shadow;

--
-- Name: reporting; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA reporting;

--
-- Name: SCHEMA reporting; Type: COMMENT; Schema: -; Owner: -
--

COMMENT ON SCHEMA reporting IS 'Views for finance and BI tools. Money is in US dollars, exact; days and months are in UTC. As of reporting.as_of.';

--
-- Name: refuse_to_unsay(); Type: FUNCTION; Schema: app; Owner: -
--

CREATE FUNCTION app.refuse_to_unsay() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    raise exception 'what was signed stays: % on %.% is refused', tg_op, tg_table_schema, tg_table_name
        using errcode = 'insufficient_privilege';
end
$$;

--
-- Name: append(text[], bigint[], integer[], text[], bytea[], uuid[], smallint[], bytea[], boolean[]); Type: FUNCTION; Schema: journal; Owner: -
--

CREATE FUNCTION journal.append(streams text[], versions bigint[], event_stream integer[], topics text[], states bytea[], claims uuid[] DEFAULT '{}'::uuid[], answer_statuses smallint[] DEFAULT '{}'::smallint[], answer_bodies bytea[] DEFAULT '{}'::bytea[], answer_encrypted boolean[] DEFAULT '{}'::boolean[], OUT head_position bigint, OUT stale text[]) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    last_position bigint;
    last_hash     bytea;
    numbers       bigint[];
    said          bytea[];
    event_said    bytea;
    hashes        bytea[] := '{}';
begin
    select head.position, head.hash into strict last_position, last_hash from journal.head as head for update;
    head_position := last_position;
    stale := journal.stale(streams, versions);

    -- Locked, so that nobody takes a claim over between this look and the answer that is kept with it below.
    if cardinality(claims) > 0 then
        perform from app.idempotency as request where request.claim_id = any (claims) for no key update;
        stale := stale || array(
            select claimed.id::text from unnest(claims) as claimed (id)
            where not exists (
                select from app.idempotency as request
                where request.claim_id = claimed.id and request.state = 'claimed'));
    end if;
    if cardinality(stale) > 0 then
        return;
    end if;

    -- As much as possible for all events at once; only the hashes must follow one another.
    select array_agg(numbered.version order by numbered.ordinal),
           array_agg(journal.said(streams[numbered.stream], numbered.version, numbered.topic, numbered.state)
                     order by numbered.ordinal)
    into numbers, said
    from (
        select each.ordinal, each.stream, each.topic, each.state,
               versions[each.stream] + row_number() over (partition by each.stream order by each.ordinal) as version
        from unnest(event_stream, topics, states) with ordinality as each (stream, topic, state, ordinal)
    ) as numbered;
    foreach event_said in array coalesce(said, '{}') loop
        last_hash := sha256(last_hash || event_said);
        hashes := hashes || last_hash;
    end loop;

    insert into journal.events (originator_id, originator_version, topic, state, notification_id, hash)
    select streams[each.stream], each.version, each.topic, each.state, last_position + each.ordinal, each.hash
    from unnest(event_stream, numbers, topics, states, hashes) with ordinality
        as each (stream, version, topic, state, hash, ordinal);

    head_position := last_position + cardinality(event_stream);
    update journal.head set position = head_position, hash = last_hash;

    if cardinality(claims) > 0 then
        update app.idempotency as request
        set state = 'finished', status = answer.status, body = answer.body, encrypted = answer.encrypted
        from unnest(claims, answer_statuses, answer_bodies, answer_encrypted) as answer (id, status, body, encrypted)
        where request.claim_id = answer.id;
    end if;
end
$$;

--
-- Name: said(text, bigint, text, bytea); Type: FUNCTION; Schema: journal; Owner: -
--

CREATE FUNCTION journal.said(stream text, version bigint, topic text, state bytea) RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (((((convert_to(stream, 'UTF8'::name) || '\x00'::bytea) || int8send(version)) || convert_to(topic, 'UTF8'::name)) || '\x00'::bytea) || state);

--
-- Name: chain(bytea, text, bigint, text, bytea); Type: FUNCTION; Schema: journal; Owner: -
--

CREATE FUNCTION journal.chain(previous bytea, stream text, version bigint, topic text, state bytea) RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN sha256((previous || journal.said(stream, version, topic, state)));

--
-- Name: forward_only(); Type: FUNCTION; Schema: journal; Owner: -
--

CREATE FUNCTION journal.forward_only() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    if new.position < old.position or (new.position = old.position and new.hash <> old.hash) then
        raise exception 'the head of the journal moves forward only' using errcode = 'insufficient_privilege';
    end if;
    return new;
end
$$;

--
-- Name: job_of(bytea); Type: FUNCTION; Schema: journal; Owner: -
--

CREATE FUNCTION journal.job_of(state bytea) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ((convert_from(state, 'UTF8'::name))::jsonb ->> 'job_id'::text);

--
-- Name: lock_head(); Type: FUNCTION; Schema: journal; Owner: -
--

CREATE FUNCTION journal.lock_head() RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select set_config('idle_in_transaction_session_timeout', '5s', true);
    select position from journal.head for update;
$$;

--
-- Name: refuse(); Type: FUNCTION; Schema: journal; Owner: -
--

CREATE FUNCTION journal.refuse() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    raise exception 'the journal is append-only: % on %.% is refused', tg_op, tg_table_schema, tg_table_name
        using errcode = 'insufficient_privilege';
end
$$;

--
-- Name: events; Type: TABLE; Schema: journal; Owner: -
--

CREATE TABLE journal.events (
    originator_id text NOT NULL COLLATE pg_catalog."C",
    originator_version bigint NOT NULL,
    topic text NOT NULL,
    state bytea NOT NULL,
    notification_id bigint NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT events_hash_check CHECK ((length(hash) = 32)),
    CONSTRAINT events_notification_id_check CHECK ((notification_id >= 1)),
    CONSTRAINT events_originator_id_check CHECK (((length(originator_id) >= 3) AND (length(originator_id) <= 400))),
    CONSTRAINT events_originator_version_check CHECK ((originator_version >= 1)),
    CONSTRAINT events_topic_check CHECK (((length(topic) >= 1) AND (length(topic) <= 100)))
);
ALTER TABLE ONLY journal.events ALTER COLUMN state SET STORAGE EXTERNAL;

--
-- Name: stale(text[], bigint[]); Type: FUNCTION; Schema: journal; Owner: -
--

CREATE FUNCTION journal.stale(streams text[], versions bigint[]) RETURNS text[]
    LANGUAGE sql STABLE
    BEGIN ATOMIC
 SELECT COALESCE(array_agg(read.stream), '{}'::text[]) AS "coalesce"
    FROM (UNNEST(stale.streams, stale.versions) read(stream, version)
      LEFT JOIN LATERAL ( SELECT event.originator_version AS version
            FROM journal.events event
           WHERE (event.originator_id = read.stream)
           ORDER BY event.originator_version DESC
          LIMIT 1) latest ON (true))
   WHERE (COALESCE(latest.version, (0)::bigint) <> read.version);
END;

--
-- Name: as_of(); Type: FUNCTION; Schema: reporting; Owner: -
--

CREATE FUNCTION reporting.as_of() RETURNS TABLE(ledger_position bigint)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ select position from readmodel.tracking $$;

--
-- Name: balances(); Type: FUNCTION; Schema: reporting; Owner: -
--

CREATE FUNCTION reporting.balances() RETURNS TABLE(team_id text, organization_id text, credits_allocated bigint, credits_used bigint, credits_remaining bigint, credits_held bigint, credits_available bigint, updated_at timestamp with time zone)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select team_id, organization_id, credits_allocated, credits_used, credits_allocated - credits_used, credits_held,
           credits_allocated - credits_used - credits_held, updated_at
    from readmodel.balances
$$;

--
-- Name: booked_differences(); Type: FUNCTION; Schema: reporting; Owner: -
--

CREATE FUNCTION reporting.booked_differences() RETURNS TABLE(ledger_position bigint, provider text, bill text, day date, provider_model text, ours_usd numeric, theirs_usd numeric, difference_usd numeric, note text, booked_at timestamp with time zone, booked_by text)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select position, provider, reference, day, model, ours_usd, theirs_usd, difference_usd, note, booked_at, booked_by
    from readmodel.booked_differences
$$;

--
-- Name: daily_costs(); Type: FUNCTION; Schema: reporting; Owner: -
--

CREATE FUNCTION reporting.daily_costs() RETURNS TABLE(day date, organization_id text, team_id text, job_type text, model text, purpose text, provider text, provider_model text, successful_calls bigint, failed_calls bigint, prompt_tokens bigint, completion_tokens bigint, provider_cost_usd numeric, client_cost_usd numeric, margin_usd numeric)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select day, organization_id, team_id, job_type, model, nullif(purpose, ''), nullif(provider, ''),
           nullif(resolved_model, ''), successful_calls, failed_calls, prompt_tokens, completion_tokens,
           provider_cost_usd, client_cost_usd, client_cost_usd - provider_cost_usd
    from readmodel.usage_by_model
$$;

--
-- Name: daily_jobs(); Type: FUNCTION; Schema: reporting; Owner: -
--

CREATE FUNCTION reporting.daily_jobs() RETURNS TABLE(day date, organization_id text, team_id text, job_type text, total_jobs bigint, completed_jobs bigint, failed_jobs bigint, cancelled_jobs bigint, credits_charged bigint, credits_refunded bigint)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select day, organization_id, team_id, job_type, total_jobs, completed_jobs, failed_jobs, cancelled_jobs,
           credits_charged, credits_refunded
    from readmodel.usage_by_day
$$;

--
-- Name: entries(); Type: FUNCTION; Schema: reporting; Owner: -
--

CREATE FUNCTION reporting.entries() RETURNS TABLE(ledger_position bigint, transaction_id uuid, team_id text, organization_id text, job_id uuid, entry_type text, credits bigint, credits_after bigint, reason text, payment_amount_usd numeric, payment_reference text, actor text, created_at timestamp with time zone)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select position, transaction_id, team_id, organization_id, job_id, transaction_type,
           credits_after - credits_before, credits_after, reason, payment_amount_usd, payment_reference, actor,
           created_at
    from readmodel.transactions
    where not is_hold
$$;

--
-- Name: jobs(); Type: FUNCTION; Schema: reporting; Owner: -
--

CREATE FUNCTION reporting.jobs() RETURNS TABLE(job_id uuid, team_id text, organization_id text, user_id text, external_task_id text, job_type text, status text, created_at timestamp with time zone, completed_at timestamp with time zone, is_charged boolean, credits_charged bigint, credits_refunded bigint, successful_calls integer, failed_calls integer, total_tokens bigint, provider_cost_usd numeric, client_cost_usd numeric)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select job_id, team_id, organization_id, user_id, external_task_id, job_type, status, created_at, completed_at,
           credit_applied, credits_charged, credits_refunded, successful_calls, failed_calls, total_tokens,
           provider_cost_usd, client_cost_usd
    from readmodel.jobs
$$;

--
-- Name: organizations(); Type: FUNCTION; Schema: reporting; Owner: -
--

CREATE FUNCTION reporting.organizations() RETURNS TABLE(organization_id text, name text, status text, created_at timestamp with time zone)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ select organization_id, name, status, created_at from readmodel.organizations $$;

--
-- Name: provider_days(); Type: FUNCTION; Schema: reporting; Owner: -
--

CREATE FUNCTION reporting.provider_days() RETURNS TABLE(day date, provider text, provider_model text, calls bigint, prompt_tokens bigint, completion_tokens bigint, provider_cost_usd numeric)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select day, provider, model, calls, prompt_tokens, completion_tokens, provider_cost_usd
    from readmodel.provider_days
$$;

--
-- Name: statements(); Type: FUNCTION; Schema: reporting; Owner: -
--

CREATE FUNCTION reporting.statements() RETURNS TABLE(team_id text, organization_id text, period text, opening_credits bigint, granted_credits bigint, adjusted_credits bigint, charged_credits bigint, refunded_credits bigint, expired_credits bigint, closing_credits bigint, client_cost_usd numeric, entries bigint, after_position bigint, ledger_position bigint, head_hash text, closed_at timestamp with time zone, closed_by text)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select team_id, organization_id, period, opening_credits, granted_credits, adjusted_credits, charged_credits,
           refunded_credits, expired_credits, closing_credits, client_cost_usd, entries, after_position, position,
           head_hash, closed_at, closed_by
    from readmodel.statements
$$;

--
-- Name: teams(); Type: FUNCTION; Schema: reporting; Owner: -
--

CREATE FUNCTION reporting.teams() RETURNS TABLE(team_id text, organization_id text, team_alias text, status text, budget_mode text, credits_per_dollar numeric, tokens_per_credit bigint, markup_percentage numeric, created_at timestamp with time zone)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select team_id, organization_id, team_alias, status, mode, credits_per_dollar, tokens_per_credit,
           markup_percentage, created_at
    from readmodel.teams
$$;

--
-- Name: checkpoints; Type: TABLE; Schema: app; Owner: -
--

CREATE TABLE app.checkpoints (
    size bigint NOT NULL,
    root bytea NOT NULL,
    note text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT checkpoints_root_check CHECK ((length(root) = 32)),
    CONSTRAINT checkpoints_size_check CHECK ((size >= 1))
);

--
-- Name: conversations; Type: TABLE; Schema: app; Owner: -
--

CREATE TABLE app.conversations (
    call_id uuid NOT NULL,
    team_id text NOT NULL,
    ciphertext bytea NOT NULL,
    created_at timestamp with time zone NOT NULL
);

--
-- Name: idempotency; Type: TABLE; Schema: app; Owner: -
--

CREATE TABLE app.idempotency (
    scope text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    state text NOT NULL,
    claim_id uuid NOT NULL,
    lease_until timestamp with time zone NOT NULL,
    status smallint,
    body bytea,
    content_type text,
    encrypted boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    process integer,
    has_written boolean DEFAULT true NOT NULL,
    has_headers boolean DEFAULT false NOT NULL,
    CONSTRAINT idempotency_check CHECK (((state = 'claimed'::text) OR (status IS NOT NULL))),
    CONSTRAINT idempotency_state_check CHECK ((state = ANY (ARRAY['claimed'::text, 'finished'::text])))
);

--
-- Name: merkle; Type: TABLE; Schema: app; Owner: -
--

CREATE TABLE app.merkle (
    level smallint NOT NULL,
    number bigint NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT merkle_hash_check CHECK ((length(hash) = 32)),
    CONSTRAINT merkle_level_check CHECK (((level >= 1) AND (level <= 7))),
    CONSTRAINT merkle_number_check CHECK ((number >= 0))
);

--
-- Name: migrations; Type: TABLE; Schema: app; Owner: -
--

CREATE TABLE app.migrations (
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

--
-- Name: secrets; Type: TABLE; Schema: app; Owner: -
--

CREATE TABLE app.secrets (
    secret_id uuid NOT NULL,
    kind text NOT NULL,
    ciphertext bytea NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

--
-- Name: webhook_deliveries; Type: TABLE; Schema: app; Owner: -
--

CREATE TABLE app.webhook_deliveries (
    delivery_id uuid NOT NULL,
    webhook_id uuid NOT NULL,
    team_id text NOT NULL,
    host text NOT NULL,
    event text NOT NULL,
    job_id uuid,
    payload json NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    next_attempt_at timestamp with time zone,
    leased_until timestamp with time zone,
    response_status smallint,
    last_error text,
    created_at timestamp with time zone NOT NULL,
    delivered_at timestamp with time zone,
    CONSTRAINT webhook_deliveries_check CHECK (((status = 'pending'::text) = (next_attempt_at IS NOT NULL))),
    CONSTRAINT webhook_deliveries_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'delivered'::text, 'failed'::text])))
);

--
-- Name: webhook_horizon; Type: TABLE; Schema: app; Owner: -
--

CREATE TABLE app.webhook_horizon (
    only_row boolean DEFAULT true NOT NULL,
    "position" bigint NOT NULL,
    CONSTRAINT webhook_horizon_only_row_check CHECK (only_row)
);

--
-- Name: head; Type: TABLE; Schema: journal; Owner: -
--

CREATE TABLE journal.head (
    only_row boolean DEFAULT true NOT NULL,
    "position" bigint NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT head_only_row_check CHECK (only_row)
)
WITH (fillfactor='10');

--
-- Name: readable; Type: VIEW; Schema: journal; Owner: -
--

CREATE VIEW journal.readable AS
 SELECT event.notification_id AS "position",
    event.originator_id AS stream,
    event.originator_version AS version,
    event.topic,
    ((body."json" ->> 'at'::text))::timestamp with time zone AS at,
    (body."json" ->> 'by'::text) AS by,
    (body."json" ->> 'request'::text) AS request,
    (body."json" - ARRAY['at'::text, 'by'::text, 'request'::text]) AS event,
    encode(event.hash, 'hex'::text) AS hash
   FROM (journal.events event
     CROSS JOIN LATERAL ( SELECT (replace(convert_from(event.state, 'UTF8'::name), '\u0000'::text, '\ufffd'::text))::jsonb AS "json") body);

--
-- Name: snapshots; Type: TABLE; Schema: journal; Owner: -
--

CREATE TABLE journal.snapshots (
    stream text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    category_version integer NOT NULL,
    state bytea NOT NULL
);

--
-- Name: as_of; Type: VIEW; Schema: reporting; Owner: -
--

CREATE VIEW reporting.as_of AS
 SELECT ledger_position
   FROM reporting.as_of() as_of(ledger_position);

--
-- Name: VIEW as_of; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON VIEW reporting.as_of IS 'How much of the ledger is in these views: everything up to this position.';

--
-- Name: COLUMN as_of.ledger_position; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.as_of.ledger_position IS 'Position of the last event that has been counted';

--
-- Name: balances; Type: VIEW; Schema: reporting; Owner: -
--

CREATE VIEW reporting.balances AS
 SELECT team_id,
    organization_id,
    credits_allocated,
    credits_used,
    credits_remaining,
    credits_held,
    credits_available,
    updated_at
   FROM reporting.balances() balances(team_id, organization_id, credits_allocated, credits_used, credits_remaining, credits_held, credits_available, updated_at);

--
-- Name: VIEW balances; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON VIEW reporting.balances IS 'What each team has now. How it came to that is in entries.';

--
-- Name: COLUMN balances.team_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.balances.team_id IS 'Whose credits';

--
-- Name: COLUMN balances.organization_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.balances.organization_id IS 'Whose team it is';

--
-- Name: COLUMN balances.credits_allocated; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.balances.credits_allocated IS 'All grants and adjustments, less what expired';

--
-- Name: COLUMN balances.credits_used; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.balances.credits_used IS 'All charges, less refunds';

--
-- Name: COLUMN balances.credits_remaining; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.balances.credits_remaining IS 'Allocated less used: what we owe the team in service';

--
-- Name: COLUMN balances.credits_held; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.balances.credits_held IS 'Set aside for open jobs, part of what remains';

--
-- Name: COLUMN balances.credits_available; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.balances.credits_available IS 'Remaining less held';

--
-- Name: COLUMN balances.updated_at; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.balances.updated_at IS 'When it last changed';

--
-- Name: booked_differences; Type: VIEW; Schema: reporting; Owner: -
--

CREATE VIEW reporting.booked_differences AS
 SELECT ledger_position,
    provider,
    bill,
    day,
    provider_model,
    ours_usd,
    theirs_usd,
    difference_usd,
    note,
    booked_at,
    booked_by
   FROM reporting.booked_differences() booked_differences(ledger_position, provider, bill, day, provider_model, ours_usd, theirs_usd, difference_usd, note, booked_at, booked_by);

--
-- Name: VIEW booked_differences; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON VIEW reporting.booked_differences IS 'What bills of providers asked beyond our record, and was agreed to.';

--
-- Name: COLUMN booked_differences.ledger_position; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.booked_differences.ledger_position IS 'Where it stands in the ledger';

--
-- Name: COLUMN booked_differences.provider; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.booked_differences.provider IS 'Whose bill';

--
-- Name: COLUMN booked_differences.bill; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.booked_differences.bill IS 'Reference of the bill';

--
-- Name: COLUMN booked_differences.day; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.booked_differences.day IS 'Day of the line';

--
-- Name: COLUMN booked_differences.provider_model; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.booked_differences.provider_model IS 'Model of the line';

--
-- Name: COLUMN booked_differences.ours_usd; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.booked_differences.ours_usd IS 'What we had on record then';

--
-- Name: COLUMN booked_differences.theirs_usd; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.booked_differences.theirs_usd IS 'What the bill says';

--
-- Name: COLUMN booked_differences.difference_usd; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.booked_differences.difference_usd IS 'Theirs less ours: by how much our cost grew';

--
-- Name: COLUMN booked_differences.note; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.booked_differences.note IS 'What somebody wrote about it';

--
-- Name: COLUMN booked_differences.booked_at; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.booked_differences.booked_at IS 'When it was booked';

--
-- Name: COLUMN booked_differences.booked_by; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.booked_differences.booked_by IS 'Who booked it';

--
-- Name: daily_costs; Type: VIEW; Schema: reporting; Owner: -
--

CREATE VIEW reporting.daily_costs AS
 SELECT day,
    organization_id,
    team_id,
    job_type,
    model,
    purpose,
    provider,
    provider_model,
    successful_calls,
    failed_calls,
    prompt_tokens,
    completion_tokens,
    provider_cost_usd,
    client_cost_usd,
    margin_usd
   FROM reporting.daily_costs() daily_costs(day, organization_id, team_id, job_type, model, purpose, provider, provider_model, successful_calls, failed_calls, prompt_tokens, completion_tokens, provider_cost_usd, client_cost_usd, margin_usd);

--
-- Name: VIEW daily_costs; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON VIEW reporting.daily_costs IS 'Calls by the day on which their job was created, by team, job type, model, provider. Years are read in a moment.';

--
-- Name: COLUMN daily_costs.day; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.day IS 'Day on which the job was created';

--
-- Name: COLUMN daily_costs.organization_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.organization_id IS 'Whose team it is';

--
-- Name: COLUMN daily_costs.team_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.team_id IS 'Whose calls';

--
-- Name: COLUMN daily_costs.job_type; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.job_type IS 'What kind of job they belong to';

--
-- Name: COLUMN daily_costs.model; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.model IS 'The model that was asked for, by its public name';

--
-- Name: COLUMN daily_costs.purpose; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.purpose IS 'What the caller said the call is for';

--
-- Name: COLUMN daily_costs.provider; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.provider IS 'Who answered; null where nobody did';

--
-- Name: COLUMN daily_costs.provider_model; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.provider_model IS 'The provider''s model that answered; null where none did';

--
-- Name: COLUMN daily_costs.successful_calls; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.successful_calls IS 'Calls that were answered';

--
-- Name: COLUMN daily_costs.failed_calls; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.failed_calls IS 'Calls that failed or were rejected';

--
-- Name: COLUMN daily_costs.prompt_tokens; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.prompt_tokens IS 'Tokens sent';

--
-- Name: COLUMN daily_costs.completion_tokens; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.completion_tokens IS 'Tokens received';

--
-- Name: COLUMN daily_costs.provider_cost_usd; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.provider_cost_usd IS 'What they cost us';

--
-- Name: COLUMN daily_costs.client_cost_usd; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.client_cost_usd IS 'What they cost the team, with markup';

--
-- Name: COLUMN daily_costs.margin_usd; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_costs.margin_usd IS 'Client cost less provider cost';

--
-- Name: daily_jobs; Type: VIEW; Schema: reporting; Owner: -
--

CREATE VIEW reporting.daily_jobs AS
 SELECT day,
    organization_id,
    team_id,
    job_type,
    total_jobs,
    completed_jobs,
    failed_jobs,
    cancelled_jobs,
    credits_charged,
    credits_refunded
   FROM reporting.daily_jobs() daily_jobs(day, organization_id, team_id, job_type, total_jobs, completed_jobs, failed_jobs, cancelled_jobs, credits_charged, credits_refunded);

--
-- Name: VIEW daily_jobs; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON VIEW reporting.daily_jobs IS 'Jobs by the day on which they were created, by team and type. Years are read in a moment.';

--
-- Name: COLUMN daily_jobs.day; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_jobs.day IS 'Day of creation, also for charges and refunds of later days';

--
-- Name: COLUMN daily_jobs.organization_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_jobs.organization_id IS 'Whose team it is';

--
-- Name: COLUMN daily_jobs.team_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_jobs.team_id IS 'Whose jobs';

--
-- Name: COLUMN daily_jobs.job_type; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_jobs.job_type IS 'What kind of job';

--
-- Name: COLUMN daily_jobs.total_jobs; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_jobs.total_jobs IS 'How many were created';

--
-- Name: COLUMN daily_jobs.completed_jobs; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_jobs.completed_jobs IS 'How many of them completed';

--
-- Name: COLUMN daily_jobs.failed_jobs; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_jobs.failed_jobs IS 'How many of them failed or expired';

--
-- Name: COLUMN daily_jobs.cancelled_jobs; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_jobs.cancelled_jobs IS 'How many of them were cancelled';

--
-- Name: COLUMN daily_jobs.credits_charged; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_jobs.credits_charged IS 'Credits charged for them';

--
-- Name: COLUMN daily_jobs.credits_refunded; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.daily_jobs.credits_refunded IS 'Credits of them given back';

--
-- Name: entries; Type: VIEW; Schema: reporting; Owner: -
--

CREATE VIEW reporting.entries AS
 SELECT ledger_position,
    transaction_id,
    team_id,
    organization_id,
    job_id,
    entry_type,
    credits,
    credits_after,
    reason,
    payment_amount_usd,
    payment_reference,
    actor,
    created_at
   FROM reporting.entries() entries(ledger_position, transaction_id, team_id, organization_id, job_id, entry_type, credits, credits_after, reason, payment_amount_usd, payment_reference, actor, created_at);

--
-- Name: VIEW entries; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON VIEW reporting.entries IS 'Every movement that changed what remains, one row each, never changed. Holds are none.';

--
-- Name: COLUMN entries.ledger_position; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.entries.ledger_position IS 'Where it stands in the ledger; order by this';

--
-- Name: COLUMN entries.transaction_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.entries.transaction_id IS 'Id of the movement';

--
-- Name: COLUMN entries.team_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.entries.team_id IS 'Whose credits';

--
-- Name: COLUMN entries.organization_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.entries.organization_id IS 'Whose team it is';

--
-- Name: COLUMN entries.job_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.entries.job_id IS 'The job that was charged or refunded';

--
-- Name: COLUMN entries.entry_type; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.entries.entry_type IS 'allocation, subscription_payment, one_time_payment, adjustment, deduction, refund or expiration';

--
-- Name: COLUMN entries.credits; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.entries.credits IS 'By how much it changed what remains, with its sign';

--
-- Name: COLUMN entries.credits_after; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.entries.credits_after IS 'What remained after it';

--
-- Name: COLUMN entries.reason; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.entries.reason IS 'What somebody wrote about it';

--
-- Name: COLUMN entries.payment_amount_usd; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.entries.payment_amount_usd IS 'What was paid for it, if that is known';

--
-- Name: COLUMN entries.payment_reference; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.entries.payment_reference IS 'Number of the payment';

--
-- Name: COLUMN entries.actor; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.entries.actor IS 'Who caused it: the id of a key or of an administrator, or master or system';

--
-- Name: COLUMN entries.created_at; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.entries.created_at IS 'When';

--
-- Name: jobs; Type: VIEW; Schema: reporting; Owner: -
--

CREATE VIEW reporting.jobs AS
 SELECT job_id,
    team_id,
    organization_id,
    user_id,
    external_task_id,
    job_type,
    status,
    created_at,
    completed_at,
    is_charged,
    credits_charged,
    credits_refunded,
    successful_calls,
    failed_calls,
    total_tokens,
    provider_cost_usd,
    client_cost_usd
   FROM reporting.jobs() jobs(job_id, team_id, organization_id, user_id, external_task_id, job_type, status, created_at, completed_at, is_charged, credits_charged, credits_refunded, successful_calls, failed_calls, total_tokens, provider_cost_usd, client_cost_usd);

--
-- Name: VIEW jobs; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON VIEW reporting.jobs IS 'Every job with what it came to. There are millions: say which team and days.';

--
-- Name: COLUMN jobs.job_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.job_id IS 'Id of the job';

--
-- Name: COLUMN jobs.team_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.team_id IS 'Whose job';

--
-- Name: COLUMN jobs.organization_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.organization_id IS 'Whose team it is';

--
-- Name: COLUMN jobs.user_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.user_id IS 'The user whom the caller named';

--
-- Name: COLUMN jobs.external_task_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.external_task_id IS 'The id that the caller has for it';

--
-- Name: COLUMN jobs.job_type; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.job_type IS 'What kind of job the caller said it is';

--
-- Name: COLUMN jobs.status; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.status IS 'pending, in_progress, completed, failed or cancelled';

--
-- Name: COLUMN jobs.created_at; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.created_at IS 'When it was created: the day on which all of it counts';

--
-- Name: COLUMN jobs.completed_at; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.completed_at IS 'When it ended';

--
-- Name: COLUMN jobs.is_charged; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.is_charged IS 'Whether credits were charged for it';

--
-- Name: COLUMN jobs.credits_charged; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.credits_charged IS 'How many';

--
-- Name: COLUMN jobs.credits_refunded; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.credits_refunded IS 'How many of them were given back';

--
-- Name: COLUMN jobs.successful_calls; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.successful_calls IS 'Calls that were answered';

--
-- Name: COLUMN jobs.failed_calls; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.failed_calls IS 'Calls that failed or were rejected';

--
-- Name: COLUMN jobs.total_tokens; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.total_tokens IS 'Tokens of its successful calls, in and out';

--
-- Name: COLUMN jobs.provider_cost_usd; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.provider_cost_usd IS 'What its calls cost us';

--
-- Name: COLUMN jobs.client_cost_usd; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.jobs.client_cost_usd IS 'What its calls cost the team, with markup';

--
-- Name: organizations; Type: VIEW; Schema: reporting; Owner: -
--

CREATE VIEW reporting.organizations AS
 SELECT organization_id,
    name,
    status,
    created_at
   FROM reporting.organizations() organizations(organization_id, name, status, created_at);

--
-- Name: VIEW organizations; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON VIEW reporting.organizations IS 'Customers, deleted ones included.';

--
-- Name: COLUMN organizations.organization_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.organizations.organization_id IS 'Id of the customer, for ever';

--
-- Name: COLUMN organizations.name; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.organizations.name IS 'Name as it is now';

--
-- Name: COLUMN organizations.status; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.organizations.status IS 'active, suspended, paused or inactive (deleted)';

--
-- Name: COLUMN organizations.created_at; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.organizations.created_at IS 'When it was created';

--
-- Name: provider_days; Type: VIEW; Schema: reporting; Owner: -
--

CREATE VIEW reporting.provider_days AS
 SELECT day,
    provider,
    provider_model,
    calls,
    prompt_tokens,
    completion_tokens,
    provider_cost_usd
   FROM reporting.provider_days() provider_days(day, provider, provider_model, calls, prompt_tokens, completion_tokens, provider_cost_usd);

--
-- Name: VIEW provider_days; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON VIEW reporting.provider_days IS 'What we owe providers, by the day on which calls ended: to be laid beside their bills.';

--
-- Name: COLUMN provider_days.day; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.provider_days.day IS 'Day on which the calls ended';

--
-- Name: COLUMN provider_days.provider; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.provider_days.provider IS 'Whose bill it is';

--
-- Name: COLUMN provider_days.provider_model; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.provider_days.provider_model IS 'The model, as its provider calls it';

--
-- Name: COLUMN provider_days.calls; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.provider_days.calls IS 'Calls that cost something or were answered';

--
-- Name: COLUMN provider_days.prompt_tokens; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.provider_days.prompt_tokens IS 'Tokens sent';

--
-- Name: COLUMN provider_days.completion_tokens; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.provider_days.completion_tokens IS 'Tokens received';

--
-- Name: COLUMN provider_days.provider_cost_usd; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.provider_days.provider_cost_usd IS 'What they cost by the prices we have on record';

--
-- Name: statements; Type: VIEW; Schema: reporting; Owner: -
--

CREATE VIEW reporting.statements AS
 SELECT team_id,
    organization_id,
    period,
    opening_credits,
    granted_credits,
    adjusted_credits,
    charged_credits,
    refunded_credits,
    expired_credits,
    closing_credits,
    client_cost_usd,
    entries,
    after_position,
    ledger_position,
    head_hash,
    closed_at,
    closed_by
   FROM reporting.statements() statements(team_id, organization_id, period, opening_credits, granted_credits, adjusted_credits, charged_credits, refunded_credits, expired_credits, closing_credits, client_cost_usd, entries, after_position, ledger_position, head_hash, closed_at, closed_by);

--
-- Name: VIEW statements; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON VIEW reporting.statements IS 'Closed statements, one row a team and month, never changed.';

--
-- Name: COLUMN statements.team_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.team_id IS 'Whose statement';

--
-- Name: COLUMN statements.organization_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.organization_id IS 'Whose team it is';

--
-- Name: COLUMN statements.period; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.period IS 'The month, as YYYY-MM';

--
-- Name: COLUMN statements.opening_credits; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.opening_credits IS 'What the statement before left';

--
-- Name: COLUMN statements.granted_credits; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.granted_credits IS 'Granted and paid for';

--
-- Name: COLUMN statements.adjusted_credits; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.adjusted_credits IS 'Adjustments, with their sign';

--
-- Name: COLUMN statements.charged_credits; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.charged_credits IS 'Charged for jobs';

--
-- Name: COLUMN statements.refunded_credits; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.refunded_credits IS 'Given back';

--
-- Name: COLUMN statements.expired_credits; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.expired_credits IS 'Expired';

--
-- Name: COLUMN statements.closing_credits; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.closing_credits IS 'What remained';

--
-- Name: COLUMN statements.client_cost_usd; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.client_cost_usd IS 'Cost, with markup, of the calls that the charges rest on';

--
-- Name: COLUMN statements.entries; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.entries IS 'How many entries it has';

--
-- Name: COLUMN statements.after_position; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.after_position IS 'Its entries stand after this position of the ledger';

--
-- Name: COLUMN statements.ledger_position; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.ledger_position IS '... up to this one';

--
-- Name: COLUMN statements.head_hash; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.head_hash IS 'Hash of the ledger at that position';

--
-- Name: COLUMN statements.closed_at; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.closed_at IS 'When it was closed';

--
-- Name: COLUMN statements.closed_by; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.statements.closed_by IS 'Who closed it';

--
-- Name: teams; Type: VIEW; Schema: reporting; Owner: -
--

CREATE VIEW reporting.teams AS
 SELECT team_id,
    organization_id,
    team_alias,
    status,
    budget_mode,
    credits_per_dollar,
    tokens_per_credit,
    markup_percentage,
    created_at
   FROM reporting.teams() teams(team_id, organization_id, team_alias, status, budget_mode, credits_per_dollar, tokens_per_credit, markup_percentage, created_at);

--
-- Name: VIEW teams; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON VIEW reporting.teams IS 'Teams with the terms they have now, deleted ones included.';

--
-- Name: COLUMN teams.team_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.teams.team_id IS 'Id of the team, for ever';

--
-- Name: COLUMN teams.organization_id; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.teams.organization_id IS 'Whose team it is';

--
-- Name: COLUMN teams.team_alias; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.teams.team_alias IS 'Name for people, if it has one';

--
-- Name: COLUMN teams.status; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.teams.status IS 'active, suspended, paused or inactive (deleted)';

--
-- Name: COLUMN teams.budget_mode; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.teams.budget_mode IS 'How jobs are charged: job_based (1 credit), consumption_usd or consumption_tokens';

--
-- Name: COLUMN teams.credits_per_dollar; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.teams.credits_per_dollar IS 'Rate in consumption_usd; null is the default of the house';

--
-- Name: COLUMN teams.tokens_per_credit; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.teams.tokens_per_credit IS 'Rate in consumption_tokens; null is the default of the house';

--
-- Name: COLUMN teams.markup_percentage; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.teams.markup_percentage IS 'What calls cost the team on top of the provider cost, in percent';

--
-- Name: COLUMN teams.created_at; Type: COMMENT; Schema: reporting; Owner: -
--

COMMENT ON COLUMN reporting.teams.created_at IS 'When it was created';

--
-- Name: checkpoints checkpoints_pkey; Type: CONSTRAINT; Schema: app; Owner: -
--

ALTER TABLE ONLY app.checkpoints
    ADD CONSTRAINT checkpoints_pkey PRIMARY KEY (size);

--
-- Name: conversations conversations_pkey; Type: CONSTRAINT; Schema: app; Owner: -
--

ALTER TABLE ONLY app.conversations
    ADD CONSTRAINT conversations_pkey PRIMARY KEY (call_id);

--
-- Name: idempotency idempotency_pkey; Type: CONSTRAINT; Schema: app; Owner: -
--

ALTER TABLE ONLY app.idempotency
    ADD CONSTRAINT idempotency_pkey PRIMARY KEY (scope, key);

--
-- Name: merkle merkle_pkey; Type: CONSTRAINT; Schema: app; Owner: -
--

ALTER TABLE ONLY app.merkle
    ADD CONSTRAINT merkle_pkey PRIMARY KEY (level, number);

--
-- Name: migrations migrations_pkey; Type: CONSTRAINT; Schema: app; Owner: -
--

ALTER TABLE ONLY app.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (name);

--
-- Name: secrets secrets_pkey; Type: CONSTRAINT; Schema: app; Owner: -
--

ALTER TABLE ONLY app.secrets
    ADD CONSTRAINT secrets_pkey PRIMARY KEY (secret_id);

--
-- Name: webhook_deliveries webhook_deliveries_pkey; Type: CONSTRAINT; Schema: app; Owner: -
--

ALTER TABLE ONLY app.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (delivery_id);

--
-- Name: webhook_horizon webhook_horizon_pkey; Type: CONSTRAINT; Schema: app; Owner: -
--

ALTER TABLE ONLY app.webhook_horizon
    ADD CONSTRAINT webhook_horizon_pkey PRIMARY KEY (only_row);

--
-- Name: events events_one_version_once; Type: CONSTRAINT; Schema: journal; Owner: -
--

ALTER TABLE ONLY journal.events
    ADD CONSTRAINT events_one_version_once PRIMARY KEY (originator_id, originator_version);

--
-- Name: head head_pkey; Type: CONSTRAINT; Schema: journal; Owner: -
--

ALTER TABLE ONLY journal.head
    ADD CONSTRAINT head_pkey PRIMARY KEY (only_row);

--
-- Name: snapshots snapshots_pkey; Type: CONSTRAINT; Schema: journal; Owner: -
--

ALTER TABLE ONLY journal.snapshots
    ADD CONSTRAINT snapshots_pkey PRIMARY KEY (stream);

--
-- Name: conversations_by_age; Type: INDEX; Schema: app; Owner: -
--

CREATE INDEX conversations_by_age ON app.conversations USING brin (created_at);

--
-- Name: conversations_by_team; Type: INDEX; Schema: app; Owner: -
--

CREATE INDEX conversations_by_team ON app.conversations USING btree (team_id);

--
-- Name: idempotency_claim_id; Type: INDEX; Schema: app; Owner: -
--

CREATE UNIQUE INDEX idempotency_claim_id ON app.idempotency USING btree (claim_id);

--
-- Name: idempotency_created_at; Type: INDEX; Schema: app; Owner: -
--

CREATE INDEX idempotency_created_at ON app.idempotency USING btree (created_at);

--
-- Name: webhook_deliveries_by_age; Type: INDEX; Schema: app; Owner: -
--

CREATE INDEX webhook_deliveries_by_age ON app.webhook_deliveries USING brin (created_at);

--
-- Name: webhook_deliveries_by_webhook; Type: INDEX; Schema: app; Owner: -
--

CREATE INDEX webhook_deliveries_by_webhook ON app.webhook_deliveries USING btree (webhook_id, created_at DESC, delivery_id DESC);

--
-- Name: webhook_deliveries_due; Type: INDEX; Schema: app; Owner: -
--

CREATE INDEX webhook_deliveries_due ON app.webhook_deliveries USING btree (webhook_id, next_attempt_at) WHERE (status = 'pending'::text);

--
-- Name: events_one_charge_per_job; Type: INDEX; Schema: journal; Owner: -
--

CREATE UNIQUE INDEX events_one_charge_per_job ON journal.events USING btree (journal.job_of(state)) WHERE (topic = 'CreditsCharged'::text);

--
-- Name: events_one_position_once; Type: INDEX; Schema: journal; Owner: -
--

CREATE UNIQUE INDEX events_one_position_once ON journal.events USING btree (notification_id);

--
-- Name: checkpoints checkpoints_are_immutable; Type: TRIGGER; Schema: app; Owner: -
--

CREATE TRIGGER checkpoints_are_immutable BEFORE DELETE OR UPDATE OR TRUNCATE ON app.checkpoints FOR EACH STATEMENT EXECUTE FUNCTION app.refuse_to_unsay();

ALTER TABLE app.checkpoints ENABLE ALWAYS TRIGGER checkpoints_are_immutable;

--
-- Name: events events_are_immutable; Type: TRIGGER; Schema: journal; Owner: -
--

CREATE TRIGGER events_are_immutable BEFORE DELETE OR UPDATE OR TRUNCATE ON journal.events FOR EACH STATEMENT EXECUTE FUNCTION journal.refuse();

ALTER TABLE journal.events ENABLE ALWAYS TRIGGER events_are_immutable;

--
-- Name: head head_is_kept; Type: TRIGGER; Schema: journal; Owner: -
--

CREATE TRIGGER head_is_kept BEFORE DELETE OR TRUNCATE ON journal.head FOR EACH STATEMENT EXECUTE FUNCTION journal.refuse();

ALTER TABLE journal.head ENABLE ALWAYS TRIGGER head_is_kept;

--
-- Name: head head_moves_forward; Type: TRIGGER; Schema: journal; Owner: -
--

CREATE TRIGGER head_moves_forward BEFORE UPDATE ON journal.head FOR EACH ROW EXECUTE FUNCTION journal.forward_only();

ALTER TABLE journal.head ENABLE ALWAYS TRIGGER head_moves_forward;

--
-- Name: SCHEMA app; Type: ACL; Schema: -; Owner: -
--

GRANT USAGE ON SCHEMA app TO saas_ledger_app;
GRANT USAGE ON SCHEMA app TO saas_ledger_auditor;

--
-- Name: SCHEMA journal; Type: ACL; Schema: -; Owner: -
--

GRANT USAGE ON SCHEMA journal TO saas_ledger_app;
GRANT USAGE ON SCHEMA journal TO saas_ledger_auditor;

--
-- Name: SCHEMA reporting; Type: ACL; Schema: -; Owner: -
--

GRANT USAGE ON SCHEMA reporting TO saas_ledger_auditor;

--
-- Name: FUNCTION append(streams text[], versions bigint[], event_stream integer[], topics text[], states bytea[], claims uuid[], answer_statuses smallint[], answer_bodies bytea[], answer_encrypted boolean[], OUT head_position bigint, OUT stale text[]); Type: ACL; Schema: journal; Owner: -
--

REVOKE ALL ON FUNCTION journal.append(streams text[], versions bigint[], event_stream integer[], topics text[], states bytea[], claims uuid[], answer_statuses smallint[], answer_bodies bytea[], answer_encrypted boolean[], OUT head_position bigint, OUT stale text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION journal.append(streams text[], versions bigint[], event_stream integer[], topics text[], states bytea[], claims uuid[], answer_statuses smallint[], answer_bodies bytea[], answer_encrypted boolean[], OUT head_position bigint, OUT stale text[]) TO saas_ledger_app;

--
-- Name: FUNCTION said(stream text, version bigint, topic text, state bytea); Type: ACL; Schema: journal; Owner: -
--

REVOKE ALL ON FUNCTION journal.said(stream text, version bigint, topic text, state bytea) FROM PUBLIC;
GRANT ALL ON FUNCTION journal.said(stream text, version bigint, topic text, state bytea) TO saas_ledger_auditor;

--
-- Name: FUNCTION chain(previous bytea, stream text, version bigint, topic text, state bytea); Type: ACL; Schema: journal; Owner: -
--

REVOKE ALL ON FUNCTION journal.chain(previous bytea, stream text, version bigint, topic text, state bytea) FROM PUBLIC;
GRANT ALL ON FUNCTION journal.chain(previous bytea, stream text, version bigint, topic text, state bytea) TO saas_ledger_auditor;

--
-- Name: FUNCTION forward_only(); Type: ACL; Schema: journal; Owner: -
--

REVOKE ALL ON FUNCTION journal.forward_only() FROM PUBLIC;

--
-- Name: FUNCTION job_of(state bytea); Type: ACL; Schema: journal; Owner: -
--

REVOKE ALL ON FUNCTION journal.job_of(state bytea) FROM PUBLIC;
GRANT ALL ON FUNCTION journal.job_of(state bytea) TO saas_ledger_app;
GRANT ALL ON FUNCTION journal.job_of(state bytea) TO saas_ledger_auditor;

--
-- Name: FUNCTION lock_head(); Type: ACL; Schema: journal; Owner: -
--

REVOKE ALL ON FUNCTION journal.lock_head() FROM PUBLIC;
GRANT ALL ON FUNCTION journal.lock_head() TO saas_ledger_app;

--
-- Name: FUNCTION refuse(); Type: ACL; Schema: journal; Owner: -
--

REVOKE ALL ON FUNCTION journal.refuse() FROM PUBLIC;

--
-- Name: TABLE events; Type: ACL; Schema: journal; Owner: -
--

GRANT SELECT ON TABLE journal.events TO saas_ledger_app;
GRANT SELECT ON TABLE journal.events TO saas_ledger_auditor;

--
-- Name: FUNCTION stale(streams text[], versions bigint[]); Type: ACL; Schema: journal; Owner: -
--

REVOKE ALL ON FUNCTION journal.stale(streams text[], versions bigint[]) FROM PUBLIC;
GRANT ALL ON FUNCTION journal.stale(streams text[], versions bigint[]) TO saas_ledger_app;

--
-- Name: FUNCTION as_of(); Type: ACL; Schema: reporting; Owner: -
--

REVOKE ALL ON FUNCTION reporting.as_of() FROM PUBLIC;
GRANT ALL ON FUNCTION reporting.as_of() TO saas_ledger_auditor;

--
-- Name: FUNCTION balances(); Type: ACL; Schema: reporting; Owner: -
--

REVOKE ALL ON FUNCTION reporting.balances() FROM PUBLIC;
GRANT ALL ON FUNCTION reporting.balances() TO saas_ledger_auditor;

--
-- Name: FUNCTION booked_differences(); Type: ACL; Schema: reporting; Owner: -
--

REVOKE ALL ON FUNCTION reporting.booked_differences() FROM PUBLIC;
GRANT ALL ON FUNCTION reporting.booked_differences() TO saas_ledger_auditor;

--
-- Name: FUNCTION daily_costs(); Type: ACL; Schema: reporting; Owner: -
--

REVOKE ALL ON FUNCTION reporting.daily_costs() FROM PUBLIC;
GRANT ALL ON FUNCTION reporting.daily_costs() TO saas_ledger_auditor;

--
-- Name: FUNCTION daily_jobs(); Type: ACL; Schema: reporting; Owner: -
--

REVOKE ALL ON FUNCTION reporting.daily_jobs() FROM PUBLIC;
GRANT ALL ON FUNCTION reporting.daily_jobs() TO saas_ledger_auditor;

--
-- Name: FUNCTION entries(); Type: ACL; Schema: reporting; Owner: -
--

REVOKE ALL ON FUNCTION reporting.entries() FROM PUBLIC;
GRANT ALL ON FUNCTION reporting.entries() TO saas_ledger_auditor;

--
-- Name: FUNCTION jobs(); Type: ACL; Schema: reporting; Owner: -
--

REVOKE ALL ON FUNCTION reporting.jobs() FROM PUBLIC;
GRANT ALL ON FUNCTION reporting.jobs() TO saas_ledger_auditor;

--
-- Name: FUNCTION organizations(); Type: ACL; Schema: reporting; Owner: -
--

REVOKE ALL ON FUNCTION reporting.organizations() FROM PUBLIC;
GRANT ALL ON FUNCTION reporting.organizations() TO saas_ledger_auditor;

--
-- Name: FUNCTION provider_days(); Type: ACL; Schema: reporting; Owner: -
--

REVOKE ALL ON FUNCTION reporting.provider_days() FROM PUBLIC;
GRANT ALL ON FUNCTION reporting.provider_days() TO saas_ledger_auditor;

--
-- Name: FUNCTION statements(); Type: ACL; Schema: reporting; Owner: -
--

REVOKE ALL ON FUNCTION reporting.statements() FROM PUBLIC;
GRANT ALL ON FUNCTION reporting.statements() TO saas_ledger_auditor;

--
-- Name: FUNCTION teams(); Type: ACL; Schema: reporting; Owner: -
--

REVOKE ALL ON FUNCTION reporting.teams() FROM PUBLIC;
GRANT ALL ON FUNCTION reporting.teams() TO saas_ledger_auditor;

--
-- Name: TABLE checkpoints; Type: ACL; Schema: app; Owner: -
--

GRANT SELECT,INSERT ON TABLE app.checkpoints TO saas_ledger_app;
GRANT SELECT ON TABLE app.checkpoints TO saas_ledger_auditor;

--
-- Name: TABLE conversations; Type: ACL; Schema: app; Owner: -
--

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE app.conversations TO saas_ledger_app;

--
-- Name: TABLE idempotency; Type: ACL; Schema: app; Owner: -
--

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE app.idempotency TO saas_ledger_app;

--
-- Name: TABLE merkle; Type: ACL; Schema: app; Owner: -
--

GRANT SELECT,INSERT ON TABLE app.merkle TO saas_ledger_app;
GRANT SELECT ON TABLE app.merkle TO saas_ledger_auditor;

--
-- Name: TABLE secrets; Type: ACL; Schema: app; Owner: -
--

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE app.secrets TO saas_ledger_app;

--
-- Name: TABLE webhook_deliveries; Type: ACL; Schema: app; Owner: -
--

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE app.webhook_deliveries TO saas_ledger_app;

--
-- Name: TABLE webhook_horizon; Type: ACL; Schema: app; Owner: -
--

GRANT SELECT,UPDATE ON TABLE app.webhook_horizon TO saas_ledger_app;

--
-- Name: TABLE head; Type: ACL; Schema: journal; Owner: -
--

GRANT SELECT ON TABLE journal.head TO saas_ledger_app;
GRANT SELECT ON TABLE journal.head TO saas_ledger_auditor;

--
-- Name: TABLE readable; Type: ACL; Schema: journal; Owner: -
--

GRANT SELECT ON TABLE journal.readable TO saas_ledger_app;
GRANT SELECT ON TABLE journal.readable TO saas_ledger_auditor;

--
-- Name: TABLE snapshots; Type: ACL; Schema: journal; Owner: -
--

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE journal.snapshots TO saas_ledger_app;
GRANT SELECT ON TABLE journal.snapshots TO saas_ledger_auditor;

--
-- Name: TABLE as_of; Type: ACL; Schema: reporting; Owner: -
--

GRANT SELECT ON TABLE reporting.as_of TO saas_ledger_auditor;

--
-- Name: TABLE balances; Type: ACL; Schema: reporting; Owner: -
--

GRANT SELECT ON TABLE reporting.balances TO saas_ledger_auditor;

--
-- Name: TABLE booked_differences; Type: ACL; Schema: reporting; Owner: -
--

GRANT SELECT ON TABLE reporting.booked_differences TO saas_ledger_auditor;

--
-- Name: TABLE daily_costs; Type: ACL; Schema: reporting; Owner: -
--

GRANT SELECT ON TABLE reporting.daily_costs TO saas_ledger_auditor;

--
-- Name: TABLE daily_jobs; Type: ACL; Schema: reporting; Owner: -
--

GRANT SELECT ON TABLE reporting.daily_jobs TO saas_ledger_auditor;

--
-- Name: TABLE entries; Type: ACL; Schema: reporting; Owner: -
--

GRANT SELECT ON TABLE reporting.entries TO saas_ledger_auditor;

--
-- Name: TABLE jobs; Type: ACL; Schema: reporting; Owner: -
--

GRANT SELECT ON TABLE reporting.jobs TO saas_ledger_auditor;

--
-- Name: TABLE organizations; Type: ACL; Schema: reporting; Owner: -
--

GRANT SELECT ON TABLE reporting.organizations TO saas_ledger_auditor;

--
-- Name: TABLE provider_days; Type: ACL; Schema: reporting; Owner: -
--

GRANT SELECT ON TABLE reporting.provider_days TO saas_ledger_auditor;

--
-- Name: TABLE statements; Type: ACL; Schema: reporting; Owner: -
--

GRANT SELECT ON TABLE reporting.statements TO saas_ledger_auditor;

--
-- Name: TABLE teams; Type: ACL; Schema: reporting; Owner: -
--

GRANT SELECT ON TABLE reporting.teams TO saas_ledger_auditor;

--
-- Name: DEFAULT PRIVILEGES FOR TABLES; Type: DEFAULT ACL; Schema: readmodel; Owner: -
--

ALTER DEFAULT PRIVILEGES FOR ROLE saas_ledger_app IN SCHEMA readmodel GRANT SELECT ON TABLES TO saas_ledger_auditor;

--
-- PostgreSQL database dump complete
--

