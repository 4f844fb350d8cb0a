-- Statements about the server and the session, not about jobs.


-- name: ping()$
-- Return true if the server answers and the table can be read.
-- Returns: one row, true.
-- Index: jobs_pkey, one probe that finds nothing.
-- Locks: none.
-- Notes: The condition is not WHERE FALSE: under row level security, servers before 18 start parallel workers for that,
-- which takes 5 ms.
SELECT count(*) >= 0
FROM goqueue.jobs AS j
WHERE j.id = '00000000-0000-0000-0000-000000000000';


-- name: get_session(backend_pid)^
-- Return the session's settings, and whether the session is the connection's own or lent by a pooler. In its own
-- session, set what the client's environment overrides (PGTZ, PGDATESTYLE) and what only some servers accept.
-- Returns: one row: whether there is a pooler (the server process differs from the one that the client connected to);
-- the names of the timeouts that are off; the statement_timeout; the isolation level; the time zone and date style that
-- were set; the client_connection_check_interval that was set. The last three are null otherwise.
-- Index: none; no row is read.
-- Locks: none.
-- Notes: client_connection_check_interval ends the statement of a client that has vanished. Only servers on Linux are
-- sure to accept it. A value that the role, the database or the URL sets is kept.
SELECT
    s.is_pooled,
    pg_catalog.array_remove(
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
-- Return the outcome of a transaction of this server, for a caller that lost the reply to its COMMIT.
-- Returns: committed, aborted or in progress; null if the id is too old to be known. An id that does not exist yet is
-- an error.
-- Index: none; no row is read.
-- Locks: none.
SELECT pg_xact_status(:transaction_id::xid8);


-- name: listen()!
-- Subscribe to the channel on which the triggers and wake_listeners send the queues that have due jobs.
-- Returns: nothing.
-- Index: none; no row is read.
-- Locks: none.
LISTEN goqueue;


-- name: listen_cancelled()!
-- Subscribe to the channel on which goqueue.follow_changed_job sends running jobs that were cancelled or deleted: id,
-- lease_token and queue.
-- Returns: nothing.
-- Index: none; no row is read.
-- Locks: none.
LISTEN goqueue_cancelled;


-- name: announce_listener()$
-- Make the triggers send notifications for as long as the connection exists. Without a listener they send none.
-- Returns: nothing.
-- Index: none; no row is read.
-- Locks: a shared advisory lock of the session; the triggers try for the exclusive one and release it at once.
SELECT pg_advisory_lock_shared(7453300657348765004);


-- name: find_listener_blockers()
-- Return the sessions that hold the lock of announce_listener exclusively. A trigger holds it for a moment. Before
-- V0010, a cancelled insert could leave it to its session.
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
-- Wake the listeners of the queues, after a claim that ended before it had read all due jobs.
-- Returns: true for each queue; false if nobody listens, or goqueue.notify is off.
-- Index: none; no row is read.
-- Locks: announce_listener's lock in exclusive mode, tried without waiting and released at once.
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
FROM pg_catalog.unnest(:queues::text[]) AS u (queue);
