-- The history of goqueue.jobs for the oracle: one row for each change, written in the transaction of the change. Run it
-- on a migrated database without jobs.
--
-- The trigger's name comes before the names of goqueue's triggers, so that a change is written before the changes that
-- those triggers make. query is the name of the statement in sql/ that made the change. A session with the
-- application_name "by hand" makes changes by hand.

CREATE SCHEMA chaos;

CREATE TABLE chaos.history (
    -- The row lock of a job serializes its changes, so places grow with each of them.
    place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    statement_at timestamptz NOT NULL DEFAULT statement_timestamp(),
    transaction_id text NOT NULL DEFAULT pg_current_xact_id()::text,
    query text,
    job_id uuid NOT NULL,
    idempotency_key text,
    max_attempts integer NOT NULL,
    -- Null before the insert.
    old_status text,
    old_token bigint,
    old_attempts integer,
    old_holder text,
    old_expires_at timestamptz,
    -- Null after the deletion.
    status text,
    token bigint,
    attempts integer,
    holder text,
    expires_at timestamptz
);

CREATE FUNCTION chaos.record_change() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO chaos.history (
        query, job_id, idempotency_key, max_attempts,
        old_status, old_token, old_attempts, old_holder, old_expires_at,
        status, token, attempts, holder, expires_at
    )
    VALUES (
        CASE
            WHEN current_setting('application_name') = 'by hand' THEN 'by hand'
            ELSE substring(left(current_query(), 200) FROM 'goqueue:(\w+)')
        END,
        coalesce(NEW.id, OLD.id),
        CASE TG_OP WHEN 'DELETE' THEN OLD.idempotency_key ELSE NEW.idempotency_key END,
        coalesce(NEW.max_attempts, OLD.max_attempts),
        OLD.status, OLD.lease_token, OLD.attempts, OLD.locked_by, OLD.lease_expires_at,
        NEW.status, NEW.lease_token, NEW.attempts, NEW.locked_by, NEW.lease_expires_at
    );
    RETURN NULL;
END
$$;

CREATE TRIGGER a_record_change AFTER INSERT OR UPDATE OR DELETE ON goqueue.jobs
FOR EACH ROW EXECUTE FUNCTION chaos.record_change();

CREATE FUNCTION chaos.reject_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'chaos.history can only be appended to';
END
$$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON chaos.history
FOR EACH STATEMENT EXECUTE FUNCTION chaos.reject_change();
