-- Statements about the server and the schema, not about jobs.


-- name: ping()$
-- Whether the server answers and the table can be read.
-- Returns: one row, true.
-- Index: none; no row is read.
-- Locks: none.
SELECT count(*) = 0
FROM goqueue.jobs AS j
WHERE FALSE;
