-- Stops if an index of an earlier migration is invalid. Those files accept any index that exists, even one that an
-- interrupted concurrent build has left: no query uses it, and a unique one can miss duplicates.
--
-- Locks: none on a table.

DO $$
DECLARE
    found text;
BEGIN
    SELECT string_agg(i.indexrelid::regclass::text, ', ' ORDER BY c.relname)
    INTO found
    FROM pg_index AS i
    INNER JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE
        i.indrelid = 'goqueue.jobs'::regclass
        AND c.relname IN (
            'jobs_running_idx', 'jobs_pending_idx', 'jobs_finished_type_idx', 'jobs_finished_queue_idx', 'jobs_unique_key_idx'
        )
        AND NOT i.indisvalid;
    IF found IS NOT NULL THEN
        RAISE EXCEPTION 'invalid: %', found USING
            ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Run REINDEX INDEX CONCURRENTLY for each of them, then migrate again.';
    END IF;
END
$$;
