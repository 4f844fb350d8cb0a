-- Undoes V0003: the recorded checksums are lost. Run it in one transaction (psql -1 -f).
DROP TABLE goqueue.migration_checksums;
DELETE FROM goqueue.schema_version WHERE version = 3;
