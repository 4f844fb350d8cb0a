-- Statements about the server and the schema, not about jobs.


-- name: ping()$
-- Whether the server answers and the table can be read.
-- Returns: one row, true.
-- Index: none; no row is read.
-- Locks: none.
SELECT count(*) = 0
FROM goqueue.jobs AS j
WHERE FALSE;


-- name: listen()!
-- Subscribes the connection to the channel on which goqueue.notify_ready_jobs sends the queues of new due jobs.
-- Returns: nothing.
-- Index: none; no row is read.
-- Locks: none.
LISTEN goqueue;


-- name: announce_listener()$
-- Tells the trigger that somebody listens, for as long as the connection lives: without that it sends nothing.
-- Returns: nothing.
-- Index: none; no row is read.
-- Locks: a shared advisory lock of the session; the trigger tries for the exclusive one and gives it back at once.
SELECT pg_advisory_lock_shared(7453300657348765004);
