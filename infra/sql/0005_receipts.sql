-- The Merkle tree over the journal (RFC 6962), and what was signed about it.
--
-- Of the tree only every eighth level is kept: the hash over 256 leaves, the hash over 256 of those, and so on, each
-- written when it is full. The leaves are in the journal, and what is between the levels is computed when a proof needs
-- it. So an append costs nothing here, and ten million events cost forty thousand rows.

create table app.merkle (
    level  smallint not null check (level between 1 and 7),
    number bigint   not null check (number >= 0),
    hash   bytea    not null check (length(hash) = 32),
    primary key (level, number)
);

-- A checkpoint says what the journal was when it had so many events; it is signed, and holds for ever.
create table app.checkpoints (
    size       bigint primary key check (size >= 1),
    root       bytea not null check (length(root) = 32),
    note       text  not null,
    created_at timestamptz not null default now()
);

create function app.refuse_to_unsay() returns trigger
    language plpgsql
as $$
begin
    raise exception 'what was signed stays: % on %.% is refused', tg_op, tg_table_schema, tg_table_name
        using errcode = 'insufficient_privilege';
end
$$;

create trigger checkpoints_are_immutable
    before update or delete or truncate on app.checkpoints
    for each statement execute function app.refuse_to_unsay();
alter table app.checkpoints enable always trigger checkpoints_are_immutable;

grant select, insert on app.merkle, app.checkpoints to saas_ledger_app;
grant usage on schema app to saas_ledger_auditor;
grant select on app.merkle, app.checkpoints to saas_ledger_auditor;

-- From the first table on, not only from the second: also how far the read models are is the auditor's to see.
alter default privileges for role saas_ledger_app in schema readmodel
    grant select on tables to saas_ledger_auditor;
