-- Undoes V0030, which changes nothing. Run it in one transaction (psql -1 -f).
DELETE FROM goqueue.migration_checksums WHERE version = 30;
DELETE FROM goqueue.schema_version WHERE version = 30;
