-- What was asked and answered in calls of teams that want it kept; encrypted, and purged after PROMPTS_KEPT_DAYS.
create table app.conversations (
    call_id    uuid primary key,
    team_id    text not null,
    ciphertext bytea not null,
    created_at timestamptz not null
);
create index conversations_by_age on app.conversations using brin (created_at);
create index conversations_by_team on app.conversations (team_id);

-- The auditor gets nothing here: what was said proves no amount.
grant select, insert, update, delete on app.conversations to saas_ledger_app;
