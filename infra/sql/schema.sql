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
    headers jsonb,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
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
-- Name: checkpoints checkpoints_pkey; Type: CONSTRAINT; Schema: app; Owner: -
--

ALTER TABLE ONLY app.checkpoints
    ADD CONSTRAINT checkpoints_pkey PRIMARY KEY (size);

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
-- Name: TABLE checkpoints; Type: ACL; Schema: app; Owner: -
--

GRANT SELECT,INSERT ON TABLE app.checkpoints TO saas_ledger_app;
GRANT SELECT ON TABLE app.checkpoints TO saas_ledger_auditor;

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
-- Name: DEFAULT PRIVILEGES FOR TABLES; Type: DEFAULT ACL; Schema: readmodel; Owner: -
--

ALTER DEFAULT PRIVILEGES FOR ROLE saas_ledger_app IN SCHEMA readmodel GRANT SELECT ON TABLES TO saas_ledger_auditor;

--
-- PostgreSQL database dump complete
--

