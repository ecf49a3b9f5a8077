-- Where read models are built anew, beside those that are read meanwhile.
create schema readmodel_shadow authorization saas_ledger_app;
