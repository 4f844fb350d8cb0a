-- Statements about the server and the schema, not about jobs.


-- name: ping()$
-- Whether the server answers and the table can be read.
-- Returns: one row, true.
-- Index: jobs_pkey, one probe that finds nothing.
-- Locks: none.
-- Notes: Not WHERE FALSE: under row level security servers before 18 start parallel workers for it, which takes 5 ms.
SELECT count(*) >= 0
FROM goqueue.jobs AS j
WHERE j.id = '00000000-0000-0000-0000-000000000000';


-- name: get_session(backend_pid)^
-- Which session the connection has got: one of its own or one that a pooler lends it, and what holds in it. In one of
-- its own, sets what the client's environment outranks (PGTZ, PGDATESTYLE) or what not every server accepts.
-- Returns: one row: whether a pooler stands between, since the server process is not the one whose number the client was
-- given when it connected; the names of the timeouts that are off; the statement_timeout; the isolation; the time zone
-- and date style that were set; the client_connection_check_interval that was set. The last three are null otherwise.
-- Index: none; no row is read.
-- Locks: none.
-- Notes: client_connection_check_interval ends the statement of a client that has vanished. Servers on Linux alone are
-- sure to accept it. One that the role, the database or the URL sets is left as it is.
SELECT
    s.is_pooled,
    array_remove(
        ARRAY[
            CASE WHEN current_setting('statement_timeout') = '0' THEN 'statement_timeout' END,
            CASE WHEN current_setting('lock_timeout') = '0' THEN 'lock_timeout' END,
            CASE
                WHEN current_setting('idle_in_transaction_session_timeout') = '0' THEN 'idle_in_transaction_session_timeout'
            END
        ],
        NULL
    ) AS unlimited,
    current_setting('statement_timeout')::interval AS statement_timeout,
    CASE
        WHEN s.is_pooled THEN current_setting('transaction_isolation')
        ELSE set_config('default_transaction_isolation', 'read committed', FALSE)
    END AS isolation,
    CASE WHEN NOT s.is_pooled THEN set_config('TimeZone', 'UTC', FALSE) END AS time_zone,
    CASE WHEN NOT s.is_pooled THEN set_config('DateStyle', 'ISO, MDY', FALSE) END AS date_style,
    CASE
        WHEN
            NOT s.is_pooled
            AND strpos(version(), 'linux') > 0
            AND current_setting('client_connection_check_interval', TRUE) = '0'
            THEN set_config('client_connection_check_interval', '5s', FALSE)
    END AS check_interval
FROM (SELECT pg_backend_pid() <> :backend_pid::integer AS is_pooled) AS s;


-- name: get_transaction_status(transaction_id)$
-- What became of a transaction of this server, for a caller who has lost the reply to its COMMIT.
-- Returns: committed, aborted or in progress; null when it is too old to be known. An error for an id not given out yet.
-- Index: none; no row is read.
-- Locks: none.
SELECT pg_xact_status(:transaction_id::xid8);


-- name: listen()!
-- Subscribes the connection to the channel on which goqueue.notify_ready_jobs sends the queues of new due jobs.
-- Returns: nothing.
-- Index: none; no row is read.
-- Locks: none.
LISTEN goqueue;


-- name: listen_cancelled()!
-- Subscribes the connection to the channel on which goqueue.follow_changed_job sends running jobs that were cancelled or
-- deleted: id, lease_token and queue.
-- Returns: nothing.
-- Index: none; no row is read.
-- Locks: none.
LISTEN goqueue_cancelled;


-- name: announce_listener()$
-- Tells the triggers that somebody listens, for as long as the connection lives: without that it sends nothing.
-- Returns: nothing.
-- Index: none; no row is read.
-- Locks: a shared advisory lock of the session; the triggers try for the exclusive one and give it back at once.
SELECT pg_advisory_lock_shared(7453300657348765004);


-- name: find_listener_blockers()
-- The sessions that hold the lock of announce_listener exclusively. A trigger holds it for a moment; before V0010 a cancelled
-- insert could leave it with its session.
-- Returns: each session's process, role and application.
-- Index: none; the lock table and the sessions are in memory.
-- Locks: none.
SELECT
    l.pid,
    a.usesysid::regrole::text AS role_name,
    a.application_name
FROM pg_locks AS l
LEFT JOIN LATERAL pg_stat_get_activity(l.pid) AS a ON TRUE
WHERE
    l.locktype = 'advisory'
    AND l.granted
    AND l.mode = 'ExclusiveLock'
    AND l.database = (SELECT own.datid FROM pg_stat_get_activity(pg_backend_pid()) AS own)
    AND (l.classid::bigint << 32 | l.objid::bigint) = 7453300657348765004
    AND l.objsubid = 1
ORDER BY l.pid;


-- name: wake_listeners(queues)
-- Wakes those who listen to the queues, when a claim ended before it had looked at all due jobs.
-- Returns: for each queue true; false when nobody listens, or goqueue.notify is off.
-- Index: none; no row is read.
-- Locks: the exclusive form of announce_listener's lock, tried for and given back at once.
SELECT
    CASE
        WHEN
            (lower(current_setting('goqueue.notify', TRUE)) IN ('off', 'false', 'no', '0')) IS NOT TRUE
            AND NOT CASE
                WHEN pg_try_advisory_lock(7453300657348765004) THEN pg_advisory_unlock(7453300657348765004)
                ELSE FALSE
            END
            THEN pg_notify('goqueue', u.queue) IS NOT NULL
        ELSE FALSE
    END AS is_sent
FROM unnest(:queues::text[]) AS u (queue);
