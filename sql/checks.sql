-- The statements of `goqueue check`: what the server and the schema are like. None is part of a job's life, and none
-- writes. Unlike the other files this one reads the server's own catalogue and statistics. The rules are in jobs.sql.


-- name: set_local(name, value)$
-- Changes a setting until the transaction ends, for the checks that need another search path or planner.
-- Returns: the new value.
-- Index: none; no row is read.
-- Locks: none.
SELECT set_config(:name::text, :value::text, TRUE);


-- name: server_state()^
-- What server, database and role the connection has, and whether pgmigrate has been here.
-- Returns: one row. sees_all_sessions: the role may see what others' transactions hold. sees_schema: it may name what is
-- in the schema goqueue. has_roles: migrations/roles/roles.sql has been run here. roles: those of its roles that this one
-- is a member of.
-- Index: none of ours.
-- Locks: none.
SELECT
    current_setting('server_version_num')::integer AS version_number,
    current_setting('server_version') AS version,
    pg_encoding_to_char(d.encoding)::text AS encoding,
    current_database()::text AS database,
    current_user::text AS role,
    pg_is_in_recovery() AS is_standby,
    pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all_sessions,
    coalesce(has_schema_privilege(n.oid, 'USAGE'), FALSE) AS sees_schema,
    v.oid IS NOT NULL AS is_migrated,
    m.oid IS NOT NULL AS has_checksums,
    coalesce(j.relrowsecurity, FALSE) AS has_roles,
    ARRAY(
        SELECT r.rolname::text
        FROM pg_roles AS r
        WHERE
            r.rolname IN ('goqueue_owner', 'goqueue_operator', 'goqueue_worker', 'goqueue_reader', 'goqueue_producer')
            AND pg_has_role(current_user, r.oid, 'MEMBER')
        ORDER BY r.rolname
    ) AS roles
FROM pg_database AS d
LEFT JOIN pg_namespace AS n ON n.nspname = 'goqueue'
LEFT JOIN pg_class AS v ON n.oid = v.relnamespace AND v.relname = 'schema_version'
LEFT JOIN pg_class AS m ON n.oid = m.relnamespace AND m.relname = 'migration_checksums'
LEFT JOIN pg_class AS j ON n.oid = j.relnamespace AND j.relname = 'jobs'
WHERE d.datname = current_database();


-- name: list_settings(names)
-- The server's settings of these names, as this session has them.
-- Returns: name and value of each that the server knows, and where the value comes from: what to give to RESET, or null
-- where that is the server's configuration.
-- Index: none of ours.
-- Locks: none.
SELECT
    s.name,
    s.setting,
    CASE s.source
        WHEN 'database' THEN format('ALTER DATABASE %%I', current_database())
        WHEN 'user' THEN format('ALTER ROLE %%I', session_user)
        WHEN 'database user' THEN format('ALTER ROLE %%I IN DATABASE %%I', session_user, current_database())
    END AS set_by
FROM pg_settings AS s
WHERE s.name = ANY(:names::text[]);


-- name: list_applied_migrations()
-- The migrations that pgmigrate has applied, with the checksum of the file as it was then.
-- Returns: one row a version, in their order; no file and no checksum where none was recorded.
-- Index: none; the tables have a row a migration.
-- Locks: none.
SELECT
    a.version::bigint AS version,
    c.file_name,
    c.sha256
FROM goqueue.schema_version AS a
LEFT JOIN goqueue.migration_checksums AS c ON a.version = c.version
ORDER BY a.version;


-- name: list_schema_objects()
-- What is in the schema goqueue, one row for each thing that can be changed by itself: tables and views, columns,
-- defaults, constraints, indexes, triggers, functions, types, storage settings, policies. migrations/schema.json is made
-- from it, and `goqueue check` compares both.
-- Returns: kind, name, definition, and state: empty, or what keeps it from working (invalid, disabled, not validated);
-- in no order.
-- Index: none of ours.
-- Locks: none.
-- Notes: Run it with pg_catalog alone in the search path, so that every definition names its schema. A view is compared
-- by its columns, because the server writes its text differently from version to version; likewise NOT NULL counts as
-- part of the column (PostgreSQL 18 has a constraint for it). pgmigrate's own table is left out.
WITH relation AS (
    SELECT
        c.oid,
        c.relname::text AS name,
        c.relkind,
        c.relpersistence,
        c.relrowsecurity,
        c.reloptions
    FROM pg_class AS c
    INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
    WHERE n.nspname = 'goqueue' AND c.relkind IN ('r', 'p', 'v', 'm') AND c.relname <> 'schema_version'
)

SELECT
    'table' AS kind,
    r.name,
    CASE r.relpersistence WHEN 'u' THEN 'unlogged ' ELSE '' END
    || CASE r.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' ELSE 'table' END AS definition,
    '' AS state
FROM relation AS r
UNION ALL
SELECT
    'column' AS kind,
    r.name || '.' || a.attname AS name,
    format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END AS definition,
    '' AS state
FROM relation AS r
INNER JOIN pg_attribute AS a ON r.oid = a.attrelid
WHERE a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT
    'default' AS kind,
    r.name || '.' || a.attname AS name,
    pg_get_expr(d.adbin, d.adrelid) AS definition,
    '' AS state
FROM relation AS r
INNER JOIN pg_attribute AS a ON r.oid = a.attrelid
INNER JOIN pg_attrdef AS d ON a.attrelid = d.adrelid AND a.attnum = d.adnum
WHERE NOT a.attisdropped
UNION ALL
SELECT
    'constraint' AS kind,
    r.name || '.' || c.conname AS name,
    replace(pg_get_constraintdef(c.oid), ' NOT VALID', '') AS definition,
    CASE WHEN c.convalidated THEN '' ELSE 'not validated' END AS state
FROM relation AS r
INNER JOIN pg_constraint AS c ON r.oid = c.conrelid
WHERE c.contype <> 'n'
UNION ALL
SELECT
    'index' AS kind,
    i.relname::text AS name,
    pg_get_indexdef(x.indexrelid) AS definition,
    CASE WHEN x.indisvalid AND x.indisready AND x.indislive THEN '' ELSE 'invalid' END AS state
FROM relation AS r
INNER JOIN pg_index AS x ON r.oid = x.indrelid
INNER JOIN pg_class AS i ON x.indexrelid = i.oid
UNION ALL
SELECT
    'trigger' AS kind,
    r.name || '.' || t.tgname AS name,
    pg_get_triggerdef(t.oid) AS definition,
    CASE WHEN t.tgenabled IN ('O', 'A') THEN '' ELSE 'disabled' END AS state
FROM relation AS r
INNER JOIN pg_trigger AS t ON r.oid = t.tgrelid
WHERE NOT t.tgisinternal
UNION ALL
SELECT
    'function' AS kind,
    p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' AS name,
    concat_ws(
        ', ',
        'returns ' || pg_get_function_result(p.oid),
        l.lanname,
        CASE p.provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END,
        CASE WHEN p.prosecdef THEN 'security definer' END,
        array_to_string(p.proconfig, ', '),
        'body ' || md5(p.prosrc)
    ) AS definition,
    '' AS state
FROM pg_proc AS p
INNER JOIN pg_namespace AS n ON p.pronamespace = n.oid
INNER JOIN pg_language AS l ON p.prolang = l.oid
WHERE n.nspname = 'goqueue'
UNION ALL
SELECT
    'type' AS kind,
    t.typname::text AS name,
    string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder) AS definition,
    '' AS state
FROM pg_type AS t
INNER JOIN pg_namespace AS n ON t.typnamespace = n.oid
INNER JOIN pg_enum AS e ON t.oid = e.enumtypid
WHERE n.nspname = 'goqueue' AND t.typname <> 'schema_version_type'
GROUP BY t.typname
UNION ALL
SELECT
    'setting' AS kind,
    r.name || '.' || split_part(o.pair, '=', 1) AS name,
    substr(o.pair, strpos(o.pair, '=') + 1) AS definition,
    '' AS state
FROM relation AS r
CROSS JOIN LATERAL unnest(r.reloptions) AS o (pair)
UNION ALL
SELECT
    'policy' AS kind,
    r.name || '.' || p.polname AS name,
    concat_ws(
        ' ',
        'USING', pg_get_expr(p.polqual, p.polrelid),
        'WITH CHECK', pg_get_expr(p.polwithcheck, p.polrelid)
    ) AS definition,
    CASE WHEN r.relrowsecurity THEN '' ELSE 'not in force' END AS state
FROM relation AS r
INNER JOIN pg_policy AS p ON r.oid = p.polrelid;


-- name: list_horizon_holders(least_age)
-- What keeps dead rows of this database from being removed, and has done so for least_age: transactions left open,
-- prepared transactions, standbys with hot_standby_feedback, replication slots.
-- Returns: kind, name (a session's process id), role, application, state, since when (null for standbys and slots, which
-- tell no time: they are always given), and the age in transactions; the oldest first.
-- Index: none of ours.
-- Locks: none.
-- Notes: Of other roles' sessions only members of pg_read_all_stats see the age; server_state tells.
SELECT
    'transaction' AS kind,
    a.pid::text AS name,
    a.usename::text AS role,
    a.application_name AS application,
    a.state,
    a.xact_start AS since,
    greatest(age(a.backend_xmin), age(a.backend_xid))::bigint AS transactions
FROM pg_stat_activity AS a
WHERE
    a.datname = current_database()
    AND a.pid <> pg_backend_pid()
    AND a.backend_type NOT IN ('autovacuum worker', 'walsender')
    AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
    AND a.xact_start <= clock_timestamp() - extract(EPOCH FROM :least_age::interval) * interval '1 second'
UNION ALL
SELECT
    'prepared transaction' AS kind,
    p.gid AS name,
    p.owner::text AS role,
    '' AS application,
    'prepared' AS state,
    p.prepared AS since,
    age(p.transaction)::bigint AS transactions
FROM pg_prepared_xacts AS p
WHERE
    p.database = current_database()
    AND p.prepared <= clock_timestamp() - extract(EPOCH FROM :least_age::interval) * interval '1 second'
UNION ALL
SELECT
    'standby' AS kind,
    r.pid::text AS name,
    r.usename::text AS role,
    r.application_name AS application,
    r.state,
    NULL AS since,
    age(r.backend_xmin)::bigint AS transactions
FROM pg_stat_replication AS r
WHERE r.backend_xmin IS NOT NULL
UNION ALL
SELECT
    'replication slot' AS kind,
    s.slot_name::text AS name,
    '' AS role,
    coalesce(s.plugin::text, '') AS application,
    CASE WHEN s.active THEN 'active' ELSE 'inactive' END AS state,
    NULL AS since,
    age(s.xmin)::bigint AS transactions
FROM pg_replication_slots AS s
WHERE s.xmin IS NOT NULL
ORDER BY transactions DESC NULLS LAST;


-- name: list_table_states()
-- How autovacuum keeps up with the tables.
-- Returns: one row a table of goqueue's that programs write to: rows live and dead, pages, when it was last vacuumed and
-- analyzed (by whomever), the age of its oldest transaction id and the age at which the server forces a vacuum, and
-- whether autovacuum is on for it.
-- Index: none of ours.
-- Locks: none.
-- Notes: The numbers are the statistics' own, which can be some seconds old, and are lost in a crash.
SELECT
    c.relname::text AS name,
    c.relpages,
    coalesce(s.n_live_tup, 0) AS live_rows,
    coalesce(s.n_dead_tup, 0) AS dead_rows,
    coalesce(s.n_mod_since_analyze, 0) AS changes_since_analyze,
    greatest(s.last_vacuum, s.last_autovacuum) AS vacuumed_at,
    greatest(s.last_analyze, s.last_autoanalyze) AS analyzed_at,
    CASE WHEN c.relfrozenxid <> '0'::xid THEN age(c.relfrozenxid)::bigint ELSE 0 END AS oldest_transaction,
    current_setting('autovacuum_freeze_max_age')::bigint AS forced_vacuum_age,
    coalesce(
        (
            SELECT o.option_value::boolean FROM pg_options_to_table(c.reloptions) AS o
            WHERE o.option_name = 'autovacuum_enabled'
        ),
        TRUE
    ) AS is_autovacuumed
FROM pg_class AS c
INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
LEFT JOIN pg_stat_all_tables AS s ON c.oid = s.relid
WHERE n.nspname = 'goqueue' AND c.relname IN ('jobs', 'job_failures') AND c.relkind IN ('r', 'p')
ORDER BY c.relname DESC;


-- name: claim_index_state()^
-- How large the claim index is, and what an entry of it takes by the statistics.
-- Returns: its bytes now, its entries when it was last vacuumed or analyzed (-1: never), the average bytes of an entry
-- (null before the table was analyzed, or where the role may not see that), and the schema of the extension pgstattuple,
-- if it is here; nothing without the index.
-- Index: jobs_claim_idx, its size alone.
-- Locks: none.
SELECT
    pg_relation_size(c.oid) AS size_bytes,
    c.reltuples::bigint AS entries,
    -- The entry's header and its line pointer, the queue's name (rounded up as the server does), priority, time and id.
    (12 + 26 + ((w.avg_width + 7) / 8) * 8)::bigint AS entry_bytes,
    (
        SELECT e.extnamespace::regnamespace::text FROM pg_extension AS e
        WHERE e.extname = 'pgstattuple'
    ) AS pgstattuple_schema
FROM pg_class AS c
INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
LEFT JOIN pg_stats AS w ON w.schemaname = 'goqueue' AND w.tablename = 'jobs' AND w.attname = 'queue'
WHERE n.nspname = 'goqueue' AND c.relname = 'jobs_claim_idx';


-- name: count_pending_jobs(most)$
-- How many jobs wait, as far as most.
-- Returns: the number, at most most.
-- Index: jobs_claim_idx, at most that many live entries.
-- Locks: none.
SELECT count(*)
FROM (
    SELECT
    FROM goqueue.jobs AS j
    WHERE j.status = 'pending'
    LIMIT :most::bigint
) AS few;


-- name: measure_claim_index()$
-- How full the claim index's pages are, read by the extension pgstattuple, whose schema has to be in the search path.
-- Returns: per cent of the leaf pages' space that holds entries, dead ones included; NaN for an empty index.
-- Index: jobs_claim_idx, all of it.
-- Locks: none that writers wait for.
SELECT m.avg_leaf_density
FROM pgstatindex('goqueue.jobs_claim_idx') AS m;


-- name: list_references(function_name)
-- What the statement in a function refers to, whatever the planner makes of it; the function is one of the session's own
-- temporary ones, made by the check of a folder of SQL files and rolled back.
-- Returns: kind and name of each thing that is not the server's own.
-- Index: none of ours.
-- Locks: none.
SELECT DISTINCT
    i.type AS kind,
    i.identity AS name,
    i.schema
FROM pg_depend AS d
INNER JOIN pg_proc AS p ON d.objid = p.oid
CROSS JOIN LATERAL pg_identify_object(d.refclassid, d.refobjid, 0) AS i
WHERE
    d.classid = 'pg_catalog.pg_proc'::regclass
    AND p.proname = :function_name::text
    AND p.pronamespace = pg_my_temp_schema()
    AND i.schema IS NOT NULL
ORDER BY kind, name;


-- name: describe_types(ids)
-- The names of types, for messages.
-- Returns: id and name of each type that exists.
-- Index: none of ours.
-- Locks: none.
SELECT
    t.oid::bigint AS id,
    format_type(t.oid, NULL) AS name
FROM pg_type AS t
WHERE t.oid = ANY(:ids::oid[]);


-- name: describe_columns(table_ids)
-- The columns of tables, for comparing where a statement's result comes from.
-- Returns: table id and column number, the column's name with schema and table, and whether it can be null.
-- Index: none of ours.
-- Locks: none.
SELECT
    a.attrelid::bigint AS table_id,
    a.attnum::integer AS number,
    n.nspname || '.' || c.relname || '.' || a.attname AS name,
    NOT a.attnotnull AS is_nullable
FROM pg_attribute AS a
INNER JOIN pg_class AS c ON a.attrelid = c.oid
INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
WHERE a.attrelid = ANY(:table_ids::oid[]) AND a.attnum > 0;
