-- Whose claim it is, so that nobody waits for a process that is gone.
--
--   process      the number that its process keeps locked for as long as it lives (infra/presence.py)
--   has_written  whether something of the request may be in the journal without its answer: then only the lease frees
--                the key, since whoever came earlier might do it a second time
--   has_headers  whether the kept body begins with a line of headers, as those of earlier versions do not
alter table app.idempotency
    add column process     integer,
    add column has_written boolean not null default true,
    add column has_headers boolean not null default false,
    drop column headers;
