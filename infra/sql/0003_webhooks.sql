-- What has to be sent to webhooks, and what came of it. The journal says what there is to tell; that it was told, how
-- often and with which answer, is no event of the business, and must survive a rebuild of the read models.

create table app.webhook_deliveries (
    delivery_id     uuid primary key,
    webhook_id      uuid not null,
    team_id         text not null,
    host            text not null,
    event           text not null,
    job_id          uuid,
    payload         json not null,
    status          text not null default 'pending' check (status in ('pending', 'delivered', 'failed')),
    attempts        integer not null default 0,
    next_attempt_at timestamptz,
    leased_until    timestamptz,
    response_status smallint,
    last_error      text,
    created_at      timestamptz not null,
    delivered_at    timestamptz,
    check ((status = 'pending') = (next_attempt_at is not null))
);

create index webhook_deliveries_due on app.webhook_deliveries (webhook_id, next_attempt_at) where status = 'pending';
create index webhook_deliveries_by_webhook on app.webhook_deliveries (webhook_id, created_at desc, delivery_id desc);
create index webhook_deliveries_by_age on app.webhook_deliveries using brin (created_at);

-- The events up to here have had their deliveries made; never goes back.
create table app.webhook_horizon (
    only_row boolean primary key default true check (only_row),
    position bigint not null
);
insert into app.webhook_horizon (position) values (0);

grant select, insert, update, delete on app.webhook_deliveries to saas_ledger_app;
grant select, update on app.webhook_horizon to saas_ledger_app;
