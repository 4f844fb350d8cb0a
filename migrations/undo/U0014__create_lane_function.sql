-- Undoes V0014. Run it in one transaction (psql -1 -f).
DROP FUNCTION goqueue.pending_lanes(text[]);
DELETE FROM goqueue.migration_checksums WHERE version = 14;
DELETE FROM goqueue.schema_version WHERE version = 14;
