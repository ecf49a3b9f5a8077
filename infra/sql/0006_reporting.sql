-- What finance may build on: views with names and meanings that stay, over read models that come and go.
--
-- The engine drops and makes the tables of read models when a definition changes; a rebuild exchanges them while they
-- are read. A view over such a table would forbid that, or go with it. So each view stands on a function of its
-- name: PostgreSQL looks at the tables in there only when it is called, and then plans it as a part of the query, with
-- every condition and index. They run with the rights of whoever asks, so what counts are the grants on the tables.

set local check_function_bodies = off;  -- the tables are made later, by the engine

create schema reporting;
comment on schema reporting is
    'Views for finance and BI tools. Money is in US dollars, exact; days and months are in UTC. As of reporting.as_of.';

create function reporting.as_of() returns table (ledger_position bigint)
    language sql stable parallel safe as $$ select position from readmodel.tracking $$;
create view reporting.as_of as select * from reporting.as_of();
comment on view reporting.as_of is 'How much of the ledger is in these views: everything up to this position.';
comment on column reporting.as_of.ledger_position is 'Position of the last event that has been counted';

create function reporting.organizations() returns table (
    organization_id text, name text, status text, created_at timestamptz)
    language sql stable parallel safe
as $$ select organization_id, name, status, created_at from readmodel.organizations $$;
create view reporting.organizations as select * from reporting.organizations();
comment on view reporting.organizations is 'Customers, deleted ones included.';
comment on column reporting.organizations.organization_id is 'Id of the customer, for ever';
comment on column reporting.organizations.name is 'Name as it is now';
comment on column reporting.organizations.status is 'active, suspended, paused or inactive (deleted)';
comment on column reporting.organizations.created_at is 'When it was created';

create function reporting.teams() returns table (
    team_id text, organization_id text, team_alias text, status text, budget_mode text, credits_per_dollar numeric,
    tokens_per_credit bigint, markup_percentage numeric, created_at timestamptz)
    language sql stable parallel safe
as $$
    select team_id, organization_id, team_alias, status, mode, credits_per_dollar, tokens_per_credit,
           markup_percentage, created_at
    from readmodel.teams
$$;
create view reporting.teams as select * from reporting.teams();
comment on view reporting.teams is 'Teams with the terms they have now, deleted ones included.';
comment on column reporting.teams.team_id is 'Id of the team, for ever';
comment on column reporting.teams.organization_id is 'Whose team it is';
comment on column reporting.teams.team_alias is 'Name for people, if it has one';
comment on column reporting.teams.status is 'active, suspended, paused or inactive (deleted)';
comment on column reporting.teams.budget_mode is
    'How jobs are charged: job_based (1 credit), consumption_usd or consumption_tokens';
comment on column reporting.teams.credits_per_dollar is 'Rate in consumption_usd; null is the default of the house';
comment on column reporting.teams.tokens_per_credit is 'Rate in consumption_tokens; null is the default of the house';
comment on column reporting.teams.markup_percentage is
    'What calls cost the team on top of the provider cost, in percent';
comment on column reporting.teams.created_at is 'When it was created';

create function reporting.balances() returns table (
    team_id text, organization_id text, credits_allocated bigint, credits_used bigint, credits_remaining bigint,
    credits_held bigint, credits_available bigint, updated_at timestamptz)
    language sql stable parallel safe
as $$
    select team_id, organization_id, credits_allocated, credits_used, credits_allocated - credits_used, credits_held,
           credits_allocated - credits_used - credits_held, updated_at
    from readmodel.balances
$$;
create view reporting.balances as select * from reporting.balances();
comment on view reporting.balances is 'What each team has now. How it came to that is in entries.';
comment on column reporting.balances.team_id is 'Whose credits';
comment on column reporting.balances.organization_id is 'Whose team it is';
comment on column reporting.balances.credits_allocated is 'All grants and adjustments, less what expired';
comment on column reporting.balances.credits_used is 'All charges, less refunds';
comment on column reporting.balances.credits_remaining is 'Allocated less used: what we owe the team in service';
comment on column reporting.balances.credits_held is 'Set aside for open jobs, part of what remains';
comment on column reporting.balances.credits_available is 'Remaining less held';
comment on column reporting.balances.updated_at is 'When it last changed';

create function reporting.entries() returns table (
    ledger_position bigint, transaction_id uuid, team_id text, organization_id text, job_id uuid, entry_type text,
    credits bigint, credits_after bigint, reason text, payment_amount_usd numeric, payment_reference text, actor text,
    created_at timestamptz)
    language sql stable parallel safe
as $$
    select position, transaction_id, team_id, organization_id, job_id, transaction_type,
           credits_after - credits_before, credits_after, reason, payment_amount_usd, payment_reference, actor,
           created_at
    from readmodel.transactions
    where not is_hold
$$;
create view reporting.entries as select * from reporting.entries();
comment on view reporting.entries is
    'Every movement that changed what remains, one row each, never changed. Holds are none.';
comment on column reporting.entries.ledger_position is 'Where it stands in the ledger; order by this';
comment on column reporting.entries.transaction_id is 'Id of the movement';
comment on column reporting.entries.team_id is 'Whose credits';
comment on column reporting.entries.organization_id is 'Whose team it is';
comment on column reporting.entries.job_id is 'The job that was charged or refunded';
comment on column reporting.entries.entry_type is
    'allocation, subscription_payment, one_time_payment, adjustment, deduction, refund or expiration';
comment on column reporting.entries.credits is 'By how much it changed what remains, with its sign';
comment on column reporting.entries.credits_after is 'What remained after it';
comment on column reporting.entries.reason is 'What somebody wrote about it';
comment on column reporting.entries.payment_amount_usd is 'What was paid for it, if that is known';
comment on column reporting.entries.payment_reference is 'Number of the payment';
comment on column reporting.entries.actor is
    'Who caused it: the id of a key or of an administrator, or master or system';
comment on column reporting.entries.created_at is 'When';

create function reporting.jobs() returns table (
    job_id uuid, team_id text, organization_id text, user_id text, external_task_id text, job_type text, status text,
    created_at timestamptz, completed_at timestamptz, is_charged boolean, credits_charged bigint,
    credits_refunded bigint, successful_calls integer, failed_calls integer, total_tokens bigint,
    provider_cost_usd numeric, client_cost_usd numeric)
    language sql stable parallel safe
as $$
    select job_id, team_id, organization_id, user_id, external_task_id, job_type, status, created_at, completed_at,
           credit_applied, credits_charged, credits_refunded, successful_calls, failed_calls, total_tokens,
           provider_cost_usd, client_cost_usd
    from readmodel.jobs
$$;
create view reporting.jobs as select * from reporting.jobs();
comment on view reporting.jobs is 'Every job with what it came to. There are millions: say which team and days.';
comment on column reporting.jobs.job_id is 'Id of the job';
comment on column reporting.jobs.team_id is 'Whose job';
comment on column reporting.jobs.organization_id is 'Whose team it is';
comment on column reporting.jobs.user_id is 'The user whom the caller named';
comment on column reporting.jobs.external_task_id is 'The id that the caller has for it';
comment on column reporting.jobs.job_type is 'What kind of job the caller said it is';
comment on column reporting.jobs.status is 'pending, in_progress, completed, failed or cancelled';
comment on column reporting.jobs.created_at is 'When it was created: the day on which all of it counts';
comment on column reporting.jobs.completed_at is 'When it ended';
comment on column reporting.jobs.is_charged is 'Whether credits were charged for it';
comment on column reporting.jobs.credits_charged is 'How many';
comment on column reporting.jobs.credits_refunded is 'How many of them were given back';
comment on column reporting.jobs.successful_calls is 'Calls that were answered';
comment on column reporting.jobs.failed_calls is 'Calls that failed or were rejected';
comment on column reporting.jobs.total_tokens is 'Tokens of its successful calls, in and out';
comment on column reporting.jobs.provider_cost_usd is 'What its calls cost us';
comment on column reporting.jobs.client_cost_usd is 'What its calls cost the team, with markup';

create function reporting.daily_jobs() returns table (
    day date, organization_id text, team_id text, job_type text, total_jobs bigint, completed_jobs bigint,
    failed_jobs bigint, cancelled_jobs bigint, credits_charged bigint, credits_refunded bigint)
    language sql stable parallel safe
as $$
    select day, organization_id, team_id, job_type, total_jobs, completed_jobs, failed_jobs, cancelled_jobs,
           credits_charged, credits_refunded
    from readmodel.usage_by_day
$$;
create view reporting.daily_jobs as select * from reporting.daily_jobs();
comment on view reporting.daily_jobs is
    'Jobs by the day on which they were created, by team and type. Years are read in a moment.';
comment on column reporting.daily_jobs.day is 'Day of creation, also for charges and refunds of later days';
comment on column reporting.daily_jobs.organization_id is 'Whose team it is';
comment on column reporting.daily_jobs.team_id is 'Whose jobs';
comment on column reporting.daily_jobs.job_type is 'What kind of job';
comment on column reporting.daily_jobs.total_jobs is 'How many were created';
comment on column reporting.daily_jobs.completed_jobs is 'How many of them completed';
comment on column reporting.daily_jobs.failed_jobs is 'How many of them failed or expired';
comment on column reporting.daily_jobs.cancelled_jobs is 'How many of them were cancelled';
comment on column reporting.daily_jobs.credits_charged is 'Credits charged for them';
comment on column reporting.daily_jobs.credits_refunded is 'Credits of them given back';

create function reporting.daily_costs() returns table (
    day date, organization_id text, team_id text, job_type text, model text, purpose text, provider text,
    provider_model text, successful_calls bigint, failed_calls bigint, prompt_tokens bigint, completion_tokens bigint,
    provider_cost_usd numeric, client_cost_usd numeric, margin_usd numeric)
    language sql stable parallel safe
as $$
    select day, organization_id, team_id, job_type, model, nullif(purpose, ''), nullif(provider, ''),
           nullif(resolved_model, ''), successful_calls, failed_calls, prompt_tokens, completion_tokens,
           provider_cost_usd, client_cost_usd, client_cost_usd - provider_cost_usd
    from readmodel.usage_by_model
$$;
create view reporting.daily_costs as select * from reporting.daily_costs();
comment on view reporting.daily_costs is
    'Calls by the day on which their job was created, by team, job type, model, provider. Years are read in a moment.';
comment on column reporting.daily_costs.day is 'Day on which the job was created';
comment on column reporting.daily_costs.organization_id is 'Whose team it is';
comment on column reporting.daily_costs.team_id is 'Whose calls';
comment on column reporting.daily_costs.job_type is 'What kind of job they belong to';
comment on column reporting.daily_costs.model is 'The model that was asked for, by its public name';
comment on column reporting.daily_costs.purpose is 'What the caller said the call is for';
comment on column reporting.daily_costs.provider is 'Who answered; null where nobody did';
comment on column reporting.daily_costs.provider_model is 'The provider''s model that answered; null where none did';
comment on column reporting.daily_costs.successful_calls is 'Calls that were answered';
comment on column reporting.daily_costs.failed_calls is 'Calls that failed or were rejected';
comment on column reporting.daily_costs.prompt_tokens is 'Tokens sent';
comment on column reporting.daily_costs.completion_tokens is 'Tokens received';
comment on column reporting.daily_costs.provider_cost_usd is 'What they cost us';
comment on column reporting.daily_costs.client_cost_usd is 'What they cost the team, with markup';
comment on column reporting.daily_costs.margin_usd is 'Client cost less provider cost';

create function reporting.provider_days() returns table (
    day date, provider text, provider_model text, calls bigint, prompt_tokens bigint, completion_tokens bigint,
    provider_cost_usd numeric)
    language sql stable parallel safe
as $$
    select day, provider, model, calls, prompt_tokens, completion_tokens, provider_cost_usd
    from readmodel.provider_days
$$;
create view reporting.provider_days as select * from reporting.provider_days();
comment on view reporting.provider_days is
    'What we owe providers, by the day on which calls ended: to be laid beside their bills.';
comment on column reporting.provider_days.day is 'Day on which the calls ended';
comment on column reporting.provider_days.provider is 'Whose bill it is';
comment on column reporting.provider_days.provider_model is 'The model, as its provider calls it';
comment on column reporting.provider_days.calls is 'Calls that cost something or were answered';
comment on column reporting.provider_days.prompt_tokens is 'Tokens sent';
comment on column reporting.provider_days.completion_tokens is 'Tokens received';
comment on column reporting.provider_days.provider_cost_usd is 'What they cost by the prices we have on record';

create function reporting.booked_differences() returns table (
    ledger_position bigint, provider text, bill text, day date, provider_model text, ours_usd numeric,
    theirs_usd numeric, difference_usd numeric, note text, booked_at timestamptz, booked_by text)
    language sql stable parallel safe
as $$
    select position, provider, reference, day, model, ours_usd, theirs_usd, difference_usd, note, booked_at, booked_by
    from readmodel.booked_differences
$$;
create view reporting.booked_differences as select * from reporting.booked_differences();
comment on view reporting.booked_differences is 'What bills of providers asked beyond our record, and was agreed to.';
comment on column reporting.booked_differences.ledger_position is 'Where it stands in the ledger';
comment on column reporting.booked_differences.provider is 'Whose bill';
comment on column reporting.booked_differences.bill is 'Reference of the bill';
comment on column reporting.booked_differences.day is 'Day of the line';
comment on column reporting.booked_differences.provider_model is 'Model of the line';
comment on column reporting.booked_differences.ours_usd is 'What we had on record then';
comment on column reporting.booked_differences.theirs_usd is 'What the bill says';
comment on column reporting.booked_differences.difference_usd is 'Theirs less ours: by how much our cost grew';
comment on column reporting.booked_differences.note is 'What somebody wrote about it';
comment on column reporting.booked_differences.booked_at is 'When it was booked';
comment on column reporting.booked_differences.booked_by is 'Who booked it';

create function reporting.statements() returns table (
    team_id text, organization_id text, period text, opening_credits bigint, granted_credits bigint,
    adjusted_credits bigint, charged_credits bigint, refunded_credits bigint, expired_credits bigint,
    closing_credits bigint, client_cost_usd numeric, entries bigint, after_position bigint, ledger_position bigint,
    head_hash text, closed_at timestamptz, closed_by text)
    language sql stable parallel safe
as $$
    select team_id, organization_id, period, opening_credits, granted_credits, adjusted_credits, charged_credits,
           refunded_credits, expired_credits, closing_credits, client_cost_usd, entries, after_position, position,
           head_hash, closed_at, closed_by
    from readmodel.statements
$$;
create view reporting.statements as select * from reporting.statements();
comment on view reporting.statements is 'Closed statements, one row a team and month, never changed.';
comment on column reporting.statements.team_id is 'Whose statement';
comment on column reporting.statements.organization_id is 'Whose team it is';
comment on column reporting.statements.period is 'The month, as YYYY-MM';
comment on column reporting.statements.opening_credits is 'What the statement before left';
comment on column reporting.statements.granted_credits is 'Granted and paid for';
comment on column reporting.statements.adjusted_credits is 'Adjustments, with their sign';
comment on column reporting.statements.charged_credits is 'Charged for jobs';
comment on column reporting.statements.refunded_credits is 'Given back';
comment on column reporting.statements.expired_credits is 'Expired';
comment on column reporting.statements.closing_credits is 'What remained';
comment on column reporting.statements.client_cost_usd is 'Cost, with markup, of the calls that the charges rest on';
comment on column reporting.statements.entries is 'How many entries it has';
comment on column reporting.statements.after_position is 'Its entries stand after this position of the ledger';
comment on column reporting.statements.ledger_position is '... up to this one';
comment on column reporting.statements.head_hash is 'Hash of the ledger at that position';
comment on column reporting.statements.closed_at is 'When it was closed';
comment on column reporting.statements.closed_by is 'Who closed it';

revoke execute on all functions in schema reporting from public;
grant usage on schema reporting to saas_ledger_auditor;
grant execute on all functions in schema reporting to saas_ledger_auditor;
grant select on all tables in schema reporting to saas_ledger_auditor;
