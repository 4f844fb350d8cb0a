-- The roles of goqueue, their rights, and the jobs that they see. ../README.md has the table of queries and roles.
--
--     goqueue sql print roles.sql | psql -v ON_ERROR_STOP=1
--
-- Needs a superuser, or a role with CREATEROLE that owns the schema goqueue (or is a member of its owner) and has
-- CREATE on the database. Such a role becomes a member of goqueue_owner, so that it can transfer the schema and run
-- this again. Run it after the database is migrated, and again after every later `pgmigrate migrate`. Repeated and
-- concurrent runs are safe, also in other databases of the server. Grants to these roles that are not in this file are
-- revoked.
--
-- Locks: ACCESS EXCLUSIVE on goqueue's tables until it ends (some milliseconds); it waits at most 3 seconds for each.

BEGIN;
-- A function or operator that somebody has planted in public must not run with the rights of this session.
SET LOCAL search_path = pg_catalog, pg_temp;
-- Less than a program's lock_timeout, as in migrations.yml.
SET LOCAL lock_timeout = '3s';
SET LOCAL client_min_messages = warning;


-- The roles: groups without logins. They belong to the server, not to the database.

DO $$
DECLARE
    new_role record;
BEGIN
    -- Wait for another run of this file or of the migrations in this database. migrations.yml has the same lock number,
    -- and the reason for polling.
    FOR attempt IN 1..100 LOOP
        EXIT WHEN pg_try_advisory_xact_lock(29114455692768613);
        IF attempt = 100 THEN
            RAISE EXCEPTION 'another run has been changing the schema for 10 seconds' USING
                ERRCODE = 'lock_not_available', HINT = 'Run this again when it has ended.';
        END IF;
        PERFORM pg_sleep(0.1);
    END LOOP;
    IF NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = to_regclass('goqueue.jobs') AND attname = 'created_by'
    ) THEN
        RAISE EXCEPTION 'goqueue.jobs has no column created_by' USING
            ERRCODE = 'undefined_column', HINT = 'Run pgmigrate migrate on this database first.';
    END IF;
    FOR new_role IN
        SELECT r.name, r.purpose FROM (VALUES
            ('goqueue_owner', 'goqueue: owns the schema and migrates it.'),
            ('goqueue_producer', 'goqueue: adds jobs, and reads those it has added.'),
            ('goqueue_worker', 'goqueue: claims jobs and says how they ended.'),
            ('goqueue_reader', 'goqueue: reads all jobs.'),
            ('goqueue_operator', 'goqueue: runs every statement, and changes nothing of the schema.')
        ) AS r (name, purpose)
        WHERE NOT EXISTS (SELECT FROM pg_roles AS p WHERE p.rolname = r.name)
    LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', new_role.name);
            EXECUTE format('COMMENT ON ROLE %I IS %L', new_role.name, new_role.purpose);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- Created in another database at the same time.
        END;
    END LOOP;
    IF NOT pg_has_role('goqueue_owner', 'USAGE') THEN
        GRANT goqueue_owner TO CURRENT_USER;
    END IF;
END
$$;


-- Ownership: the schema and everything in it. Objects that already have the right owner are not changed.

DO $$
DECLARE
    command text;
BEGIN
    FOR command IN
        SELECT 'ALTER SCHEMA goqueue OWNER TO goqueue_owner'
        FROM pg_namespace
        WHERE nspname = 'goqueue' AND nspowner <> 'goqueue_owner'::regrole
        UNION ALL
        SELECT format('ALTER TABLE %s OWNER TO goqueue_owner', oid::regclass)
        FROM pg_class
        WHERE relnamespace = 'goqueue'::regnamespace AND relkind IN ('r', 'p', 'v', 'm') AND relowner <> 'goqueue_owner'::regrole
        UNION ALL
        SELECT format('ALTER TYPE %s OWNER TO goqueue_owner', oid::regtype)
        FROM pg_type
        WHERE typnamespace = 'goqueue'::regnamespace AND typtype IN ('e', 'd') AND typowner <> 'goqueue_owner'::regrole
        UNION ALL
        SELECT format('ALTER ROUTINE %s OWNER TO goqueue_owner', oid::regprocedure)
        FROM pg_proc
        WHERE pronamespace = 'goqueue'::regnamespace AND proowner <> 'goqueue_owner'::regrole
    LOOP
        EXECUTE command;
    END LOOP;
END
$$;


-- Grants: revoke all, then grant these. Where statements of sql/ write only some columns, the grant is on these
-- columns, so that the others can't be forged.

REVOKE ALL ON SCHEMA goqueue
FROM public, goqueue_producer, goqueue_worker, goqueue_reader, goqueue_operator;
REVOKE ALL ON ALL TABLES IN SCHEMA goqueue
FROM public, goqueue_producer, goqueue_worker, goqueue_reader, goqueue_operator;
REVOKE ALL ON ALL ROUTINES IN SCHEMA goqueue
FROM public, goqueue_producer, goqueue_worker, goqueue_reader, goqueue_operator;
REVOKE ALL ON TYPE goqueue.job_status, goqueue.schema_version_type
FROM public, goqueue_producer, goqueue_worker, goqueue_reader, goqueue_operator;

GRANT USAGE ON SCHEMA goqueue
TO goqueue_producer, goqueue_worker, goqueue_reader, goqueue_operator;
-- For all roles here, because each program checks the schema's version.
GRANT SELECT ON goqueue.schema_version, goqueue.migration_checksums
TO goqueue_producer, goqueue_worker, goqueue_reader, goqueue_operator;
-- The policies below restrict the rows.
GRANT SELECT ON goqueue.jobs, goqueue.job_failures
TO goqueue_producer, goqueue_worker, goqueue_reader, goqueue_operator;

-- The views show all queues to every reader: they read with the rights of goqueue_owner.
GRANT SELECT ON goqueue.queue_metrics, goqueue.queue_status_metrics
TO goqueue_worker, goqueue_reader, goqueue_operator;

-- The columns that create_job, create_jobs and create_missing_jobs write.
GRANT INSERT (
    id, queue, job_type, payload, priority, max_attempts, scheduled_at, idempotency_key, unique_key
) ON goqueue.jobs
TO goqueue_producer, goqueue_operator;
-- The default of an omitted id, in a manually inserted row.
GRANT EXECUTE ON FUNCTION goqueue.uuid_v7()
TO goqueue_producer, goqueue_operator;
-- Jobs from SQL: it inserts and reads with the rights of its caller.
GRANT EXECUTE ON FUNCTION
goqueue.add_job(text, jsonb, text, integer, integer, timestamptz, interval, text, uuid, text)
TO goqueue_producer, goqueue_operator;
-- The rows of create_jobs and create_missing_jobs.
GRANT EXECUTE ON FUNCTION goqueue.new_jobs(jsonb)
TO goqueue_producer, goqueue_operator;

-- The loose index scans of claim_jobs and next_job_at, and of list_jobs, count_jobs, prune_jobs and list_job_types.
GRANT EXECUTE ON FUNCTION
goqueue.pending_lanes(text[]), goqueue.finished_lanes(goqueue.job_status[], text[], text[])
TO goqueue_producer, goqueue_worker, goqueue_reader, goqueue_operator;

-- claim_jobs, next_job_at and queue_stats read the pauses; pause_queue and resume_queue write them.
GRANT SELECT ON goqueue.paused_queues
TO goqueue_producer, goqueue_worker, goqueue_reader, goqueue_operator;
GRANT INSERT (queue, paused_until), UPDATE (paused_until, paused_at, paused_by), DELETE ON goqueue.paused_queues
TO goqueue_operator;

-- The columns that the statements of leases.sql change. A job's type and payload are not among them.
GRANT UPDATE (
    status, attempts, last_error, locked_by, locked_at, lease_token, lease_expires_at,
    scheduled_at, updated_at, started_at, completed_at
) ON goqueue.jobs
TO goqueue_worker, goqueue_operator;
GRANT INSERT ON goqueue.job_failures
TO goqueue_worker, goqueue_operator;
GRANT UPDATE (attempt, failed_at, started_at, worker_id, error) ON goqueue.job_failures
TO goqueue_worker, goqueue_operator;

-- update_job, replace_pending_job and change_jobs change these too; delete_job, delete_jobs, delete_failures and
-- prune_jobs delete.
GRANT UPDATE (queue, job_type, payload, priority, max_attempts, idempotency_key, unique_key) ON goqueue.jobs
TO goqueue_operator;
GRANT DELETE ON goqueue.jobs, goqueue.job_failures
TO goqueue_operator;
GRANT EXECUTE ON FUNCTION goqueue.delete_unreferenced_jobs(uuid[])
TO goqueue_operator;

-- Objects of later migrations: PUBLIC gets nothing; roles that read everything can read new tables. The later version
-- of this file grants the rest.
ALTER DEFAULT PRIVILEGES FOR ROLE goqueue_owner REVOKE ALL ON ROUTINES FROM public;
ALTER DEFAULT PRIVILEGES FOR ROLE goqueue_owner REVOKE ALL ON TYPES FROM public;
ALTER DEFAULT PRIVILEGES FOR ROLE goqueue_owner IN SCHEMA goqueue
GRANT SELECT ON TABLES TO goqueue_reader, goqueue_operator;


-- Rows: a producer sees the jobs it added. The owner and superusers always see all. From now on, a role with grants of
-- its own sees nothing unless it is a member of one of these roles.

DROP POLICY IF EXISTS all_jobs ON goqueue.jobs;
CREATE POLICY all_jobs ON goqueue.jobs
TO goqueue_worker, goqueue_reader, goqueue_operator
USING (TRUE);

DROP POLICY IF EXISTS own_jobs_are_added ON goqueue.jobs;
CREATE POLICY own_jobs_are_added ON goqueue.jobs
FOR INSERT TO goqueue_producer
WITH CHECK (created_by = current_user);

DROP POLICY IF EXISTS own_jobs_are_read ON goqueue.jobs;
CREATE POLICY own_jobs_are_read ON goqueue.jobs
FOR SELECT TO goqueue_producer
USING (created_by = current_user);

DROP POLICY IF EXISTS all_failures ON goqueue.job_failures;
CREATE POLICY all_failures ON goqueue.job_failures
TO goqueue_worker, goqueue_reader, goqueue_operator
USING (TRUE);

DROP POLICY IF EXISTS own_jobs_failures_are_read ON goqueue.job_failures;
CREATE POLICY own_jobs_failures_are_read ON goqueue.job_failures
FOR SELECT TO goqueue_producer
-- The policies on jobs apply inside: the jobs read are the producer's own.
USING (EXISTS (SELECT FROM goqueue.jobs AS j WHERE j.id = job_id));

-- Not for the owner: the metrics views read as the owner.
ALTER TABLE goqueue.jobs ENABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;
ALTER TABLE goqueue.job_failures ENABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;


-- Name the roles that no longer see jobs because of that.

DO $$
DECLARE
    stranger text;
BEGIN
    FOR stranger IN
        SELECT DISTINCT r.rolname
        FROM pg_class AS c
        CROSS JOIN LATERAL aclexplode(c.relacl) AS granted
        INNER JOIN pg_roles AS r ON granted.grantee = r.oid
        WHERE
            c.oid = 'goqueue.jobs'::regclass
            AND NOT r.rolbypassrls
            AND NOT EXISTS (
                SELECT FROM pg_roles AS known
                WHERE
                    known.rolname IN (
                        'goqueue_owner', 'goqueue_producer', 'goqueue_worker', 'goqueue_reader', 'goqueue_operator'
                    )
                    AND pg_has_role(r.oid, known.oid, 'MEMBER')
            )
        ORDER BY 1
    LOOP
        RAISE WARNING 'the role % has grants of its own on goqueue.jobs, but sees no job from now on', quote_ident(stranger)
            USING HINT = format('GRANT goqueue_worker (or another of these roles) TO %I;', stranger);
    END LOOP;
END
$$;

COMMIT;
