-- The journal: what was written. One table of events, one row that is its head, one function that is its door.
--
-- The row lock on journal.head is the writer lock, the counter of positions and the head of the hash chain at once.
-- So positions have no gaps, are visible in order, and every event vouches for all events before it.

create schema journal;

-- The columns keep the shape of the eventsourcing library, so that its readers work on this table:
-- originator = stream, notification_id = position. Names of streams compare as bytes, whatever the database's locale.
create table journal.events (
    originator_id      text   collate "C" not null check (length(originator_id) between 3 and 400),
    originator_version bigint not null check (originator_version >= 1),
    topic              text   not null check (length(topic) between 1 and 100),
    state              bytea  not null,
    notification_id    bigint not null check (notification_id >= 1),
    hash               bytea  not null check (length(hash) = 32),
    constraint events_one_version_once primary key (originator_id, originator_version)
);
-- Compressing a large event takes several times as long as writing it, and everybody waits meanwhile.
alter table journal.events alter column state set storage external;
create unique index events_one_position_once on journal.events (notification_id);

create table journal.head (
    only_row boolean primary key default true check (only_row),
    position bigint not null,
    hash     bytea  not null
) with (fillfactor = 10);  -- room for the versions that a long transaction somewhere keeps from being cleared away
insert into journal.head (position, hash) values (0, decode(repeat('00', 32), 'hex'));

-- Snapshots save work and mean nothing: any of them may be deleted at any time.
create table journal.snapshots (
    stream           text    collate "C" primary key,
    version          bigint  not null,
    category_version integer not null,
    state            bytea   not null
);

-- A job is charged once. The decision sees to it; this sees to it even if the decision had a bug.
create function journal.job_of(state bytea) returns text
    language sql immutable parallel safe
    return convert_from(state, 'UTF8')::jsonb ->> 'job_id';

create unique index events_one_charge_per_job on journal.events (journal.job_of(state)) where topic = 'CreditsCharged';


-- What an event says, all of it in one piece: where it stands, what it is, what it tells. The zero bytes keep the parts
-- apart: no text in PostgreSQL contains one.
create function journal.said(stream text, version bigint, topic text, state bytea) returns bytea
    language sql immutable parallel safe
    return convert_to(stream, 'UTF8') || '\x00'::bytea || int8send(version)
        || convert_to(topic, 'UTF8') || '\x00'::bytea || state;

-- The hash of an event covers what it says and the hash before it, and so everything before it.
create function journal.chain(previous bytea, stream text, version bigint, topic text, state bytea) returns bytea
    language sql immutable parallel safe
    return sha256(previous || journal.said(stream, version, topic, state));


-- Which of these streams have moved on since they were read.
create function journal.stale(streams text[], versions bigint[]) returns text[]
    language sql stable
    begin atomic
        select coalesce(array_agg(read.stream), '{}')
        from unnest(streams, versions) as read (stream, version)
        left join lateral (
            select event.originator_version as version
            from journal.events as event
            where event.originator_id = read.stream
            order by event.originator_version desc
            limit 1
        ) as latest on true
        where coalesce(latest.version, 0) <> read.version;
    end;


-- Takes the writer lock until the end of the transaction, and says where the head is. Whoever falls silent with the
-- lock in hand (its machine is gone, say, and nobody closed the connection) loses it soon: everybody else is waiting.
create function journal.lock_head() returns bigint
    language sql security definer set search_path = pg_catalog, pg_temp
as $$
    select set_config('idle_in_transaction_session_timeout', '5s', true);
    select position from journal.head for update;
$$;


-- The one door in. Writes events if nothing that their decisions rested on has changed, else says what has.
--
--   streams, versions    every stream that a decision read or writes, and the version it was read at (0: no events)
--   event_stream         for each event, which of the streams it belongs to (1-based)
--   topics, states       the events
--   claims, answers      idempotency claims that these events fulfil, and the answers to keep with them
--
-- Returns the position of the head, and the streams (or claims) that are stale; if there are any, nothing was written.
create function journal.append(
    streams text[], versions bigint[],
    event_stream integer[], topics text[], states bytea[],
    claims uuid[] default '{}', answer_statuses smallint[] default '{}', answer_bodies bytea[] default '{}',
    answer_encrypted boolean[] default '{}',
    out head_position bigint, out stale text[]
)
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
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


-- Immutability: nobody rewrites history, the owner of the tables included. The triggers fire always, also in sessions
-- that play back what another server did.
create function journal.refuse() returns trigger
    language plpgsql
as $$
begin
    raise exception 'the journal is append-only: % on %.% is refused', tg_op, tg_table_schema, tg_table_name
        using errcode = 'insufficient_privilege';
end
$$;

create trigger events_are_immutable
    before update or delete or truncate on journal.events
    for each statement execute function journal.refuse();
alter table journal.events enable always trigger events_are_immutable;

create trigger head_is_kept
    before delete or truncate on journal.head
    for each statement execute function journal.refuse();
alter table journal.head enable always trigger head_is_kept;

create function journal.forward_only() returns trigger
    language plpgsql
as $$
begin
    if new.position < old.position or (new.position = old.position and new.hash <> old.hash) then
        raise exception 'the head of the journal moves forward only' using errcode = 'insufficient_privilege';
    end if;
    return new;
end
$$;

create trigger head_moves_forward
    before update on journal.head
    for each row execute function journal.forward_only();
alter table journal.head enable always trigger head_moves_forward;


-- For an auditor with psql and nothing of ours. JSON may say \u0000 and jsonb may not: one such letter must not keep
-- the whole journal from being read.
create view journal.readable as
select event.notification_id as position,
       event.originator_id as stream,
       event.originator_version as version,
       event.topic,
       (body.json ->> 'at')::timestamptz as at,
       body.json ->> 'by' as by,
       body.json ->> 'request' as request,
       body.json - array['at', 'by', 'request'] as event,
       encode(event.hash, 'hex') as hash
from journal.events as event
cross join lateral (
    select replace(convert_from(event.state, 'UTF8'), '\u0000', '\ufffd')::jsonb as json
) as body;


revoke all on all functions in schema journal from public;
grant usage on schema journal to saas_ledger_app, saas_ledger_auditor;
grant select on journal.events, journal.head, journal.readable to saas_ledger_app, saas_ledger_auditor;
grant select, insert, update, delete on journal.snapshots to saas_ledger_app;
grant select on journal.snapshots to saas_ledger_auditor;
grant execute on function journal.append, journal.lock_head, journal.stale, journal.job_of to saas_ledger_app;
grant execute on function journal.said, journal.chain, journal.job_of to saas_ledger_auditor;

-- What follows from the journal. The projections make their tables in it, drop them and build them again.
create schema readmodel authorization saas_ledger_app;
