-- Where the tables of a read model stand that was left behind, so that readers can be told. New databases get the
-- column with the table, from whoever first makes the read models.
alter table if exists readmodel.definitions add column if not exists position bigint;
