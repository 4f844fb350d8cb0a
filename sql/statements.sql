-- The server's statistics of the statements in this folder. For psql and `goqueue queries --times`.


-- name: statement_times()
-- Return the calls and times of each goqueue query in this database, from pg_stat_statements, the most expensive first.
-- Returns: one row per query: calls, times in milliseconds (without planning), rows returned or changed, pages read,
-- and its share of the time of all goqueue queries, from 0 to 1.
-- Index: none; the extension keeps its figures in memory.
-- Locks: none.
-- Notes: It needs pg_stat_statements in shared_preload_libraries (a restart), CREATE EXTENSION pg_stat_statements in
-- this database, and membership in pg_read_all_stats to see other roles' statements. pg_stat_statements has one entry
-- per role; here they are one row. The figures start at the last pg_stat_statements_reset().
SELECT
    t.name,
    t.calls,
    round(t.total_ms::numeric, 3)::double precision AS total_ms,
    round((t.total_ms / t.calls)::numeric, 3)::double precision AS mean_ms,
    round(t.max_ms::numeric, 3)::double precision AS max_ms,
    t.row_count,
    t.page_count,
    round((t.total_ms / nullif(sum(t.total_ms) OVER (), 0))::numeric, 4)::double precision AS share
FROM (
    SELECT
        substring(s.query FROM '/\* goqueue:(\w+) \*/') AS name,
        sum(s.calls)::bigint AS calls,
        sum(s.total_exec_time) AS total_ms,
        max(s.max_exec_time) AS max_ms,
        sum(s.rows)::bigint AS row_count,
        sum(s.shared_blks_hit + s.shared_blks_read)::bigint AS page_count
    FROM pg_stat_statements AS s
    WHERE
        s.dbid = (
            SELECT d.oid
            FROM pg_database AS d
            WHERE d.datname = current_database()
        )
    GROUP BY substring(s.query FROM '/\* goqueue:(\w+) \*/')
) AS t
WHERE t.name IS NOT NULL AND t.calls > 0
ORDER BY t.total_ms DESC, t.name ASC;
