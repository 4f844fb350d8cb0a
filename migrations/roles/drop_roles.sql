-- Undoes roles.sql in this database: the role that runs this then owns everything, and every role with its own grants
-- sees all jobs. The roles are dropped if no other database of the server uses them; logins that were members remain.
--
--     goqueue sql print drop_roles.sql | psql -v ON_ERROR_STOP=1
--
-- Needs the rights that roles.sql needs. Programs with rights from these roles lose them.
--
-- Locks: ACCESS EXCLUSIVE on goqueue's tables until it ends (some milliseconds); it waits at most 3 seconds for each.

BEGIN;
-- A function or operator that somebody has planted in public must not run with the rights of this session.
SET LOCAL search_path = pg_catalog, pg_temp;
-- Less than a program's lock_timeout, as in migrations.yml.
SET LOCAL lock_timeout = '3s';
SET LOCAL client_min_messages = warning;

DO $$
BEGIN
    -- Wait for a run of roles.sql or of the migrations in this database. migrations.yml has the same lock number, and
    -- the reason for polling.
    FOR attempt IN 1..100 LOOP
        EXIT WHEN pg_try_advisory_xact_lock(29114455692768613);
        IF attempt = 100 THEN
            RAISE EXCEPTION 'another run has been changing the schema for 10 seconds' USING
                ERRCODE = 'lock_not_available', HINT = 'Run this again when it has ended.';
        END IF;
        PERFORM pg_sleep(0.1);
    END LOOP;
END
$$;

-- First jobs, as in the statements and in roles.sql: another order could deadlock with them.
ALTER TABLE goqueue.jobs DISABLE ROW LEVEL SECURITY;
ALTER TABLE goqueue.job_failures DISABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS own_jobs_failures_are_read ON goqueue.job_failures;
DROP POLICY IF EXISTS all_failures ON goqueue.job_failures;
DROP POLICY IF EXISTS own_jobs_are_read ON goqueue.jobs;
DROP POLICY IF EXISTS own_jobs_are_added ON goqueue.jobs;
DROP POLICY IF EXISTS all_jobs ON goqueue.jobs;

-- The default rights of PUBLIC.
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA goqueue TO public;
GRANT USAGE ON TYPE goqueue.job_status, goqueue.schema_version_type TO public;
GRANT SELECT ON goqueue.paused_queues TO public;

DO $$
DECLARE
    role_name text;
BEGIN
    FOR role_name IN
        SELECT r.rolname
        FROM pg_roles AS r
        WHERE r.rolname IN (
            'goqueue_owner', 'goqueue_producer', 'goqueue_worker', 'goqueue_reader', 'goqueue_operator'
        )
        ORDER BY r.rolname
    LOOP
        IF NOT pg_has_role(role_name, 'USAGE') THEN
            EXECUTE format('GRANT %I TO CURRENT_USER', role_name);
        END IF;
        IF role_name = 'goqueue_owner' THEN
            REASSIGN OWNED BY goqueue_owner TO CURRENT_USER;
        END IF;
        EXECUTE format('DROP OWNED BY %I', role_name);
        BEGIN
            EXECUTE format('DROP ROLE %I', role_name);
        EXCEPTION WHEN dependent_objects_still_exist THEN
            RAISE WARNING 'the role % stays, because another database uses it', role_name
                USING HINT = 'Run this file there too.';
        END;
    END LOOP;
END
$$;

COMMIT;
