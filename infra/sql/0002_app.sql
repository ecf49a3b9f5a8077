-- Mutable things that are ours and not history: the journal holds their ids, never their contents.

create table app.secrets (
    secret_id  uuid primary key,
    kind       text not null,
    ciphertext bytea not null,
    created_at timestamptz not null default now()
);

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

-- The auditor gets nothing here: secrets prove no amount.
grant usage on schema app to saas_ledger_app;
grant select, insert, update, delete on app.secrets, app.idempotency to saas_ledger_app;
