-- Mutable things that are ours and not history: the journal holds their ids, never their contents.

create table app.secrets (
    secret_id  uuid primary key,
    kind       text not null,
    ciphertext bytea not null,
    created_at timestamptz not null default now()
);

create table app.sessions (
    token_hash text primary key,
    user_id    uuid not null,
    expires_at timestamptz not null,
    created_at timestamptz not null default now()
);

-- A password change ends all sessions of a user; a sweeper ends those that have expired.
create index sessions_user_id on app.sessions (user_id);
create index sessions_expires_at on app.sessions (expires_at);

-- scope = hash of credential, method and path. A claim whose lease is over belongs to whoever asks next.
create table app.idempotency (
    scope        text not null,
    key          text not null,
    fingerprint  bytea not null,
    state        text not null check (state in ('claimed', 'finished')),
    claim_id     uuid not null,
    lease_until  timestamptz not null,
    status       smallint,
    body         bytea,
    content_type text,
    encrypted    boolean not null default false,
    headers      jsonb,
    created_at   timestamptz not null default now(),
    primary key (scope, key),
    check (state = 'claimed' or status is not null)
);

create index idempotency_created_at on app.idempotency (created_at);
create unique index idempotency_claim_id on app.idempotency (claim_id);

-- Prompts and answers of the teams that asked to keep them; purged by age.
create table app.call_contents (
    job_id     uuid not null,
    call_id    uuid primary key,
    team_id    text not null,
    request    bytea,
    response   bytea,
    created_at timestamptz not null default now()
);

create index call_contents_job_id on app.call_contents (job_id);
create index call_contents_team_id on app.call_contents (team_id);
create index call_contents_created_at on app.call_contents (created_at);

-- The auditor gets nothing here: secrets and prompts prove no amount.
grant usage on schema app to saas_ledger_app;
grant select, insert, update, delete
    on app.secrets, app.sessions, app.idempotency, app.call_contents to saas_ledger_app;
