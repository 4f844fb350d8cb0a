-- The statements of `goqueue check`: the state of the server and the schema. None is part of a job's life, and none
-- writes. They read the server's catalogs and statistics. The rules of this folder are in jobs.sql.


-- name: set_local(name, value)$
-- Change a setting until the transaction ends, for checks that need another search path or planner setting.
-- Returns: the new value.
-- Index: none; no row is read.
-- Locks: none.
SELECT set_config(:name::text, :value::text, TRUE);


-- name: server_state()^
-- Return the connection's server, database and role, and whether pgmigrate has run here.
-- Returns: one row. sees_all_sessions: the role can read other roles' transactions. sees_schema: it has USAGE on the
-- schema goqueue. has_roles: migrations/roles/roles.sql has run in this database; one of its roles owns an object of
-- the schema or has a grant on it. roles: the roles of that file that this role is a member of. inherited: those
-- of them whose rights it has without SET ROLE.
-- Index: none; the server's catalogs are read.
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
    (
        SELECT count(*) > 0
        FROM pg_shdepend AS h
        INNER JOIN pg_roles AS r ON h.refclassid = 'pg_authid'::regclass::oid AND h.refobjid = r.oid
        WHERE
            h.dbid = d.oid
            AND r.rolname IN ('goqueue_owner', 'goqueue_operator', 'goqueue_worker', 'goqueue_reader', 'goqueue_producer')
            AND (
                (h.classid = 'pg_namespace'::regclass::oid AND h.objid = n.oid)
                OR (
                    h.classid = 'pg_class'::regclass::oid
                    AND h.objid IN (
                        SELECT c.oid FROM pg_class AS c
                        WHERE c.relnamespace = n.oid
                    )
                )
            )
    ) AS has_roles,
    ARRAY(
        SELECT r.rolname::text
        FROM pg_roles AS r
        WHERE
            r.rolname IN ('goqueue_owner', 'goqueue_operator', 'goqueue_worker', 'goqueue_reader', 'goqueue_producer')
            AND pg_has_role(current_user, r.oid, 'MEMBER')
        ORDER BY r.rolname
    ) AS roles,
    ARRAY(
        SELECT r.rolname::text
        FROM pg_roles AS r
        WHERE
            r.rolname IN ('goqueue_owner', 'goqueue_operator', 'goqueue_worker', 'goqueue_reader', 'goqueue_producer')
            AND pg_has_role(current_user, r.oid, 'USAGE')
        ORDER BY r.rolname
    ) AS inherited,
    u.rolsuper AS is_superuser
FROM pg_database AS d
INNER JOIN pg_roles AS u ON u.rolname = current_user
LEFT JOIN pg_namespace AS n ON n.nspname = 'goqueue'
LEFT JOIN pg_class AS v ON n.oid = v.relnamespace AND v.relname = 'schema_version'
LEFT JOIN pg_class AS m ON n.oid = m.relnamespace AND m.relname = 'migration_checksums'
WHERE d.datname = current_database();


-- name: list_settings(names)
-- Return the values of these settings in this session.
-- Returns: name and value of each setting that the server knows, and the source of the value: the text to put before
-- RESET, the word client for the connection's own options, or null for the server's configuration.
-- Index: none; the server's catalogs are read.
-- Locks: none.
SELECT
    s.name,
    s.setting,
    CASE s.source
        WHEN 'database' THEN pg_catalog.format('ALTER DATABASE %%I', current_database())
        WHEN 'user' THEN pg_catalog.format('ALTER ROLE %%I', session_user)
        WHEN 'database user' THEN pg_catalog.format('ALTER ROLE %%I IN DATABASE %%I', session_user, current_database())
        WHEN 'global' THEN 'ALTER ROLE ALL'
        WHEN 'client' THEN 'client'
    END AS set_by
FROM pg_settings AS s
WHERE s.name = ANY(:names::text[]);


-- name: list_default_settings(names)
-- Return the defaults of these settings for the database, for all roles, and for this session's role and the members of
-- the roles of migrations/roles/roles.sql.
-- Returns: one row per default: name, value as given, the text to put before RESET, and those of our roles that the
-- default's role is a member of (empty for defaults of all roles).
-- Index: none; the server's catalogs are read.
-- Locks: none.
-- Notes: A session's own options hide them from list_settings.
SELECT
    split_part(o.pair, '=', 1) AS name,
    substr(o.pair, strpos(o.pair, '=') + 1) AS value,
    CASE
        WHEN s.setrole = 0::oid AND s.setdatabase = 0::oid THEN 'ALTER ROLE ALL'
        WHEN s.setrole = 0::oid THEN pg_catalog.format('ALTER DATABASE %%I', d.datname)
        WHEN s.setdatabase = 0::oid THEN pg_catalog.format('ALTER ROLE %%I', r.rolname)
        ELSE pg_catalog.format('ALTER ROLE %%I IN DATABASE %%I', r.rolname, d.datname)
    END AS set_by,
    m.roles
FROM pg_db_role_setting AS s
INNER JOIN pg_database AS d ON d.datname = current_database() AND s.setdatabase IN (0::oid, d.oid)
LEFT JOIN pg_roles AS r ON s.setrole = r.oid
CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS o (pair)
CROSS JOIN LATERAL (
    SELECT
        ARRAY(
            SELECT g.rolname::text
            FROM pg_roles AS g
            WHERE
                g.rolname IN ('goqueue_owner', 'goqueue_operator', 'goqueue_worker', 'goqueue_reader', 'goqueue_producer')
                AND r.rolcanlogin
                AND NOT r.rolsuper
                AND pg_has_role(r.oid, g.oid, 'MEMBER')
            ORDER BY g.rolname
        ) AS roles
) AS m
WHERE
    split_part(o.pair, '=', 1) = ANY(:names::text[])
    AND (s.setrole = 0::oid OR r.rolname = session_user OR m.roles[1] IS NOT NULL)
ORDER BY set_by, name;


-- name: list_lock_holders()
-- Return the sessions that hold the advisory lock with which the triggers detect listeners. They hold it
-- for microseconds within a statement. A session that keeps it blocks every new listener.
-- Returns: process id, role, application and state of each (null if the role has no right to see them), and the
-- number of sessions that wait for the lock.
-- Index: none; the server's catalogs are read.
-- Locks: none.
-- Notes: The key is that of migrations/V0007__notify_ready_jobs.sql.
SELECT
    h.pid,
    a.usename::text AS role,
    a.application_name AS application,
    a.state,
    pg_catalog.count(w.pid) AS waiting
FROM pg_locks AS h
INNER JOIN pg_database AS d ON h.database = d.oid AND d.datname = current_database()
LEFT JOIN pg_stat_activity AS a ON h.pid = a.pid
LEFT JOIN pg_locks AS w
    ON
        NOT w.granted
        AND h.locktype = w.locktype
        AND h.database = w.database
        AND h.classid = w.classid
        AND h.objid = w.objid
        AND h.objsubid = w.objsubid
WHERE
    h.locktype = 'advisory'
    AND h.classid = (7453300657348765004 >> 32)::oid
    AND h.objid = (7453300657348765004 & 4294967295)::oid
    AND h.objsubid = 1
    AND h.mode = 'ExclusiveLock'
    AND h.granted
GROUP BY h.pid, a.usename, a.application_name, a.state
ORDER BY h.pid;


-- name: count_applied_migrations()$
-- Count the recorded migrations, while goqueue.migration_checksums does not exist yet.
-- Returns: the number.
-- Index: none; the table has one row for each migration.
-- Locks: none.
SELECT count(*) FROM goqueue.schema_version AS a;


-- name: list_applied_migrations()
-- Return the migrations that pgmigrate has applied, with the checksum of each file at that time.
-- Returns: one row per version, in order; no file and no checksum if none was recorded.
-- Index: none; the tables have one row for each migration.
-- Locks: none.
SELECT
    a.version::bigint AS version,
    c.file_name,
    c.sha256
FROM goqueue.schema_version AS a
LEFT JOIN goqueue.migration_checksums AS c ON a.version = c.version
ORDER BY a.version;


-- name: list_schema_objects()
-- Return the objects of the schema goqueue, one row for each part that can change by itself: tables and views, columns,
-- defaults, constraints, indexes, triggers, functions, types, storage settings, policies. migrations/schema.json is
-- generated from it, and `goqueue check` compares both.
-- Returns: kind, name, definition, and state: empty, or the reason why it does not work (invalid, disabled, not
-- validated); in no particular order.
-- Index: none; the server's catalogs are read.
-- Locks: none.
-- Notes: Run it with only pg_catalog in the search path, so that every definition names its schema. A view is compared
-- by its columns, because its text differs between server versions. NOT NULL counts as part of the column, because only
-- PostgreSQL 18 has a constraint for it. An index is compared without its storage settings, which are objects of their
-- own. Tablespaces are not compared. pgmigrate's own table is left out.
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
    CASE
        WHEN i.reloptions IS NULL THEN pg_get_indexdef(x.indexrelid)
        ELSE regexp_replace(pg_get_indexdef(x.indexrelid), ' WITH [(][^)]*[)]', '')
    END AS definition,
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
FROM (
    SELECT
        w.name,
        w.reloptions
    FROM relation AS w
    UNION ALL
    SELECT
        i.relname::text AS name,
        i.reloptions
    FROM relation AS w
    INNER JOIN pg_index AS x ON w.oid = x.indrelid
    INNER JOIN pg_class AS i ON x.indexrelid = i.oid
) AS r
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


-- name: list_rights()
-- Return the rights in the schema goqueue: owners, grants, default privileges, row level security, policies, and the
-- attributes and memberships of the roles of migrations/roles/roles.sql. migrations/roles/rights.json is generated from
-- it, and `goqueue check` compares both.
-- Returns: kind, object, role and detail, one row per fact, unordered. owner: the object's owner. grant: the
-- privilege, with its column in parentheses; grant option: likewise. default grant: the grants that later objects get.
-- row level security: ENABLE or FORCE. policy: its name instead of a role, and the rest of the statement that creates
-- it. role: one of ours that exists; attribute: one of its attributes. member: one of ours that is in another role, or
-- a role that can grant membership in ours. exempt: a member of ours that row level security does not limit, and why.
-- blind: a role that has its own grant on the table and sees none of its rows.
-- Index: none; the server's catalogs are read.
-- Locks: none.
-- Notes: Run it with only pg_catalog in the search path, so that every expression names its schema. OWNER means the
-- object's owner, PUBLIC everyone. MAINTAIN (PostgreSQL 17) is left out of the owner's grants.
--
WITH our_role AS (
    SELECT
        r.oid,
        r.rolname::text AS name
    FROM pg_roles AS r
    WHERE r.rolname IN ('goqueue_owner', 'goqueue_operator', 'goqueue_worker', 'goqueue_reader', 'goqueue_producer')
),

relation AS (
    SELECT
        c.oid,
        format('TABLE goqueue.%%I', c.relname) AS object,
        c.relkind,
        c.relowner,
        c.relacl,
        c.relrowsecurity,
        c.relforcerowsecurity
    FROM pg_class AS c
    INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
    WHERE n.nspname = 'goqueue' AND c.relkind IN ('r', 'p', 'v', 'm')
),

thing AS (
    SELECT
        'SCHEMA goqueue' AS object,
        n.nspowner AS owner_id,
        coalesce(n.nspacl, acldefault('n', n.nspowner)) AS acl,
        '' AS column_name
    FROM pg_namespace AS n
    WHERE n.nspname = 'goqueue'
    UNION ALL
    SELECT
        r.object,
        r.relowner AS owner_id,
        coalesce(r.relacl, acldefault('r', r.relowner)) AS acl,
        '' AS column_name
    FROM relation AS r
    UNION ALL
    SELECT
        r.object,
        r.relowner AS owner_id,
        a.attacl AS acl,
        format(' (%%I)', a.attname) AS column_name
    FROM relation AS r
    INNER JOIN pg_attribute AS a ON r.oid = a.attrelid
    WHERE a.attacl IS NOT NULL AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT
        format('ROUTINE goqueue.%%I(%%s)', p.proname, pg_get_function_identity_arguments(p.oid)) AS object,
        p.proowner AS owner_id,
        coalesce(p.proacl, acldefault('f', p.proowner)) AS acl,
        '' AS column_name
    FROM pg_proc AS p
    INNER JOIN pg_namespace AS n ON p.pronamespace = n.oid
    WHERE n.nspname = 'goqueue'
    UNION ALL
    SELECT
        format('TYPE goqueue.%%I', t.typname) AS object,
        t.typowner AS owner_id,
        coalesce(t.typacl, acldefault('T', t.typowner)) AS acl,
        '' AS column_name
    FROM pg_type AS t
    INNER JOIN pg_namespace AS n ON t.typnamespace = n.oid
    WHERE n.nspname = 'goqueue' AND t.typtype IN ('e', 'd')
),

default_acl AS (
    SELECT
        'FOR ROLE ' || o.name AS object,
        o.oid AS owner_id,
        k.name AS objects,
        coalesce(d.defaclacl, k.acl) AS acl
    FROM our_role AS o
    CROSS JOIN LATERAL (
        VALUES
        ('TABLES', 'r', acldefault('r', o.oid)),
        ('ROUTINES', 'f', acldefault('f', o.oid)),
        ('TYPES', 'T', acldefault('T', o.oid))
    ) AS k (name, code, acl)
    LEFT JOIN pg_default_acl AS d
        ON o.oid = d.defaclrole AND d.defaclnamespace = 0 AND k.code = d.defaclobjtype::text
    WHERE o.name = 'goqueue_owner'
    UNION ALL
    SELECT
        format('FOR ROLE %%I IN SCHEMA goqueue', pg_get_userbyid(d.defaclrole)) AS object,
        d.defaclrole AS owner_id,
        CASE d.defaclobjtype
            WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'ROUTINES' ELSE 'TYPES'
        END AS objects,
        d.defaclacl AS acl
    FROM pg_default_acl AS d
    INNER JOIN pg_namespace AS n ON d.defaclnamespace = n.oid
    WHERE n.nspname = 'goqueue'
),

-- PostgreSQL 16 and later record for each membership whether its rights are inherited. In earlier versions, all are.
membership AS (
    SELECT
        m.roleid AS group_id,
        m.member AS member_id,
        m.admin_option AS is_admin,
        coalesce((to_jsonb(m) ->> 'inherit_option')::boolean, TRUE)
        OR coalesce((to_jsonb(m) ->> 'set_option')::boolean, TRUE) AS gives_rights
    FROM pg_auth_members AS m
)

SELECT
    'owner' AS kind,
    t.object,
    pg_get_userbyid(t.owner_id)::text AS role,
    '' AS detail
FROM thing AS t
WHERE t.column_name = ''
UNION
SELECT
    'grant' AS kind,
    t.object,
    CASE a.grantee WHEN 0 THEN 'PUBLIC' WHEN t.owner_id THEN 'OWNER' ELSE pg_get_userbyid(a.grantee)::text END AS role,
    a.privilege_type || t.column_name AS detail
FROM thing AS t
CROSS JOIN LATERAL aclexplode(t.acl) AS a
WHERE a.grantee <> t.owner_id OR a.privilege_type <> 'MAINTAIN'
UNION
SELECT
    'grant option' AS kind,
    t.object,
    pg_get_userbyid(a.grantee)::text AS role,
    a.privilege_type || t.column_name AS detail
FROM thing AS t
CROSS JOIN LATERAL aclexplode(t.acl) AS a
WHERE a.is_grantable AND a.grantee <> t.owner_id
UNION
SELECT
    'default grant' AS kind,
    d.object,
    CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END AS role,
    a.privilege_type || ' ON ' || d.objects AS detail
FROM default_acl AS d
CROSS JOIN LATERAL aclexplode(d.acl) AS a
WHERE a.grantee <> d.owner_id
UNION
SELECT
    'row level security' AS kind,
    r.object,
    '' AS role,
    s.state AS detail
FROM relation AS r
CROSS JOIN LATERAL (VALUES ('ENABLE', r.relrowsecurity), ('FORCE', r.relforcerowsecurity)) AS s (state, is_on)
WHERE s.is_on
UNION
SELECT
    'policy' AS kind,
    r.object,
    quote_ident(p.polname) AS role,
    concat_ws(
        ' ',
        'AS', CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
        'FOR', CASE p.polcmd
            WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL'
        END,
        'TO', (
            SELECT string_agg(g.name, ', ' ORDER BY g.name)
            FROM unnest(p.polroles) AS i (role_id)
            CROSS JOIN LATERAL (
                SELECT CASE i.role_id WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(i.role_id)) END AS name
            ) AS g
        ),
        -- The server breaks an expression's text into lines.
        'USING (' || regexp_replace(pg_get_expr(p.polqual, p.polrelid), '[[:space:]]+', ' ', 'g') || ')',
        'WITH CHECK (' || regexp_replace(pg_get_expr(p.polwithcheck, p.polrelid), '[[:space:]]+', ' ', 'g') || ')'
    ) AS detail
FROM relation AS r
INNER JOIN pg_policy AS p ON r.oid = p.polrelid
UNION
SELECT
    'role' AS kind,
    o.name AS object,
    '' AS role,
    '' AS detail
FROM our_role AS o
UNION
SELECT
    'attribute' AS kind,
    o.name AS object,
    '' AS role,
    x.attribute AS detail
FROM our_role AS o
INNER JOIN pg_roles AS p ON o.oid = p.oid
CROSS JOIN LATERAL (
    VALUES
    ('SUPERUSER', p.rolsuper),
    ('BYPASSRLS', p.rolbypassrls),
    ('CREATEROLE', p.rolcreaterole),
    ('CREATEDB', p.rolcreatedb),
    ('REPLICATION', p.rolreplication),
    ('LOGIN', p.rolcanlogin)
) AS x (attribute, is_on)
WHERE x.is_on
UNION
SELECT
    'member' AS kind,
    g.rolname::text AS object,
    m.rolname::text AS role,
    CASE WHEN o.oid IS NULL THEN 'ADMIN OPTION' ELSE '' END AS detail
FROM membership AS i
INNER JOIN pg_roles AS g ON i.group_id = g.oid
INNER JOIN pg_roles AS m ON i.member_id = m.oid
LEFT JOIN our_role AS o ON m.oid = o.oid
WHERE
    o.oid IS NOT NULL
    OR (
        i.is_admin
        AND g.oid IN (SELECT r.oid FROM our_role AS r)
        -- A role that can create roles can grant memberships in any case.
        AND NOT (m.rolsuper OR m.rolcreaterole)
    )
UNION
SELECT
    'exempt' AS kind,
    o.name AS object,
    m.rolname::text AS role,
    CASE
        WHEN m.rolsuper THEN 'SUPERUSER'
        WHEN m.rolbypassrls THEN 'BYPASSRLS'
        ELSE 'goqueue_owner'
    END AS detail
FROM our_role AS o
CROSS JOIN pg_roles AS m
WHERE
    o.name <> 'goqueue_owner'
    AND m.oid NOT IN (SELECT r.oid FROM our_role AS r)
    AND CASE
        -- A superuser counts as a member of every role; only explicit members are meant.
        WHEN m.rolsuper
            THEN
                EXISTS (
                    SELECT FROM membership AS i
                    WHERE i.group_id = o.oid AND i.member_id = m.oid AND i.gives_rights
                )
        WHEN m.rolbypassrls THEN o.name = 'goqueue_producer' AND pg_has_role(m.oid, o.oid, 'USAGE')
        ELSE
            NOT m.rolcreaterole
            AND pg_has_role(m.oid, o.oid, 'USAGE')
            AND EXISTS (
                SELECT FROM our_role AS w
                WHERE w.name = 'goqueue_owner' AND pg_has_role(m.oid, w.oid, 'MEMBER')
            )
    END
UNION
SELECT
    'blind' AS kind,
    r.object,
    m.rolname::text AS role,
    '' AS detail
FROM relation AS r
CROSS JOIN LATERAL aclexplode(r.relacl) AS a
INNER JOIN pg_roles AS m ON a.grantee = m.oid
WHERE
    r.relrowsecurity
    AND a.grantee <> r.relowner
    AND NOT (m.rolsuper OR m.rolbypassrls)
    AND NOT EXISTS (
        SELECT FROM our_role AS o
        WHERE pg_has_role(m.oid, o.oid, 'MEMBER')
    )
    AND NOT EXISTS (
        SELECT
        FROM pg_policy AS p
        CROSS JOIN LATERAL unnest(p.polroles) AS i (role_id)
        WHERE
            p.polrelid = r.oid
            AND p.polpermissive
            AND (i.role_id = 0 OR pg_has_role(m.oid, i.role_id, 'USAGE'))
    );


-- name: list_horizon_holders(least_age)
-- Return what has held back the snapshot horizon (xmin) of this database for least_age or longer: open transactions,
-- prepared transactions, standbys with hot_standby_feedback, replication slots.
-- Returns: kind, name (a session's process id), role, application, state, since when (null for standbys and slots,
-- which have no time and are always returned), and the age in transactions; the oldest first.
-- Index: none; the server's catalogs are read.
-- Locks: none.
-- Notes: Only members of pg_read_all_stats see the age of other roles' sessions (sees_all_sessions of server_state).
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
    AND a.xact_start <= clock_timestamp() - extract(EPOCH FROM :least_age::interval)::double precision * interval '1 second'
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
    AND p.prepared <= clock_timestamp() - extract(EPOCH FROM :least_age::interval)::double precision * interval '1 second'
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
-- Return the state of vacuum for the tables.
-- Returns: one row for jobs and one for job_failures: live and dead tuples, pages, the times of the
-- last vacuum and analyze (manual or automatic), the age of its oldest transaction id, the age at which the server
-- forces a vacuum, and whether autovacuum is on for it.
-- Index: none; the server's catalogs are read.
-- Locks: none.
-- Notes: The figures are from the statistics: some seconds old, and lost in a crash.
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
-- Return the size of the claim index and, from the statistics, the average size of an entry.
-- Returns: its bytes now, its entries at the last vacuum or analyze (-1: never), the average bytes of an entry (null
-- before the first analyze or without the right to read it), and the schema of the extension pgstattuple if it is
-- installed; nothing without the index.
-- Index: jobs_claim_idx, only its size.
-- Locks: none.
--
SELECT
    pg_relation_size(c.oid::regclass) AS size_bytes,
    c.reltuples::bigint AS entries,
    -- The entry's header and line pointer, the queue's name (rounded up as the server does), priority, time and id.
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
-- Count pending jobs, up to the parameter most.
-- Returns: the number.
-- Index: jobs_claim_idx, at most that many live entries.
-- Locks: none.
SELECT count(*)
FROM (
    SELECT
    FROM goqueue.jobs AS j
    WHERE j.status = 'pending'
    LIMIT :most::bigint
) AS few;


-- name: durability_state()^
-- Return the settings and standbys that determine what an acknowledged commit of this session survives.
-- Returns: one row: the settings fsync, full_page_writes, synchronous_commit (of this session) and
-- synchronous_standby_names; how many standbys a commit waits for; the streaming standbys that count, and the others
-- (both empty for a role that is no member of pg_read_all_stats); the tables that a crash empties (unlogged).
-- Index: none; the server's catalogs are read.
-- Locks: none.
--
SELECT
    current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('synchronous_standby_names') AS synchronous_standby_names,
    CASE
        WHEN current_setting('synchronous_standby_names') = '' THEN 0
        -- FIRST 2 (a, b), ANY 2 (a, b), 2 (a, b); without a number, one.
        ELSE coalesce(
            (regexp_match(current_setting('synchronous_standby_names'), '^ *((first|any) +)?([0-9]+) *[(]', 'i'))[3], '1'
        )::integer
    END AS needed_standbys,
    ARRAY(
        SELECT s.application_name FROM pg_stat_replication AS s
        WHERE s.state = 'streaming' AND s.sync_state IN ('sync', 'quorum')
        ORDER BY s.application_name
    ) AS synchronous_standbys,
    ARRAY(
        SELECT s.application_name FROM pg_stat_replication AS s
        WHERE s.state = 'streaming' AND s.sync_state NOT IN ('sync', 'quorum')
        ORDER BY s.application_name
    ) AS other_standbys,
    ARRAY(
        SELECT c.relname::text FROM pg_class AS c
        INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
        WHERE n.nspname = 'goqueue' AND c.relkind = 'r' AND c.relpersistence = 'u'
        ORDER BY c.relname
    ) AS unlogged_tables;


-- name: standby_state()^
-- Return how far this server's reads are behind its primary.
-- Returns: one row: true if the server is a standby; the time since the newest commit that it shows, zero if it shows all
-- that it has received, null if it has shown none or is no standby; and true if it is connected to its primary.
-- Index: none; the server's shared memory is read.
-- Locks: none.
-- Notes: A standby that lost its primary receives nothing, so it counts as up to date. is_receiving is then false.
--
SELECT
    pg_is_in_recovery() AS is_standby,
    CASE
        -- After a promotion, both positions remain.
        WHEN NOT pg_is_in_recovery() THEN NULL
        WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN interval '0'
        ELSE statement_timestamp() - pg_last_xact_replay_timestamp()
    END AS behind,
    (SELECT count(*) > 0 FROM pg_stat_wal_receiver) AS is_receiving;


-- name: database_identity()^
-- Return what identifies this session's database, to compare it with that of another session.
-- Returns: one row: the cluster's system identifier, which its physical standbys share; the database's oid and name; when
-- the server started; true if the server is a standby; true if a subscription of this database fills the table jobs.
-- Index: none; the server's catalogs and its control file are read.
-- Locks: none.
SELECT
    s.system_identifier,
    d.oid::bigint AS database_oid,
    d.datname::text AS database,
    pg_postmaster_start_time() AS started_at,
    pg_is_in_recovery() AS is_standby,
    (
        SELECT count(*) > 0
        FROM pg_subscription_rel AS r
        INNER JOIN pg_class AS c ON r.srrelid = c.oid
        INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
        WHERE n.nspname = 'goqueue' AND c.relname = 'jobs'
    ) AS is_subscriber
FROM pg_control_system() AS s
CROSS JOIN pg_database AS d
WHERE d.datname = current_database();


-- name: measure_claim_index()$
-- Measure how full the claim index's pages are, with the extension pgstattuple, whose schema must be in the search
-- path.
-- Returns: the percentage of the leaf pages' space that holds entries, dead ones included; NaN for an empty index.
-- Index: jobs_claim_idx, all of it.
-- Locks: none that writers wait for.
SELECT m.avg_leaf_density
FROM pgstatindex('goqueue.jobs_claim_idx') AS m;


-- name: list_references(function_name)
-- Return the objects that a function's statement refers to, including those that the planner removes. The function is
-- temporary: the check of a folder of SQL files creates it and rolls it back.
-- Returns: kind and name of each object that is not built into the server.
-- Index: none; the server's catalogs are read.
-- Locks: none.
SELECT DISTINCT
    i.type AS kind,
    i.identity AS name,
    i.schema
FROM pg_depend AS d
INNER JOIN pg_proc AS p ON d.objid = p.oid
CROSS JOIN LATERAL pg_identify_object(d.refclassid, d.refobjid, 0) AS i
WHERE
    d.classid = 'pg_catalog.pg_proc'::regclass::oid
    AND p.proname = :function_name::text
    AND p.pronamespace = pg_my_temp_schema()
    AND i.schema IS NOT NULL
ORDER BY kind, name;


-- name: list_volatile_functions(names)
-- Return which of these functions are volatile: they can change something, or return another result each time.
-- Returns: the name of each, with parentheses, ordered; functions of the schema goqueue are left out.
-- Index: none; the server's catalogs are read.
-- Locks: none.
SELECT DISTINCT p.proname::text || '()' AS name
FROM pg_proc AS p
INNER JOIN pg_namespace AS n ON p.pronamespace = n.oid
WHERE p.proname = ANY(:names::text[]) AND p.provolatile = 'v' AND n.nspname <> 'goqueue'
ORDER BY name;


-- name: describe_types(ids)
-- Return the names of types, for messages.
-- Returns: id and name of each type that exists.
-- Index: none; the server's catalogs are read.
-- Locks: none.
SELECT
    t.oid::bigint AS id,
    format_type(t.oid, NULL) AS name
FROM pg_type AS t
WHERE t.oid = ANY(:ids::oid[]);


-- name: describe_columns(table_ids)
-- Return the columns of tables, to compare the origin of a statement's result.
-- Returns: table id and column number, the column's name with schema and table, and whether it can be null.
-- Index: none; the server's catalogs are read.
-- Locks: none.
SELECT
    a.attrelid::bigint AS table_id,
    a.attnum::integer AS number,
    n.nspname::text || '.' || c.relname::text || '.' || a.attname::text AS name,
    NOT a.attnotnull AS is_nullable
FROM pg_attribute AS a
INNER JOIN pg_class AS c ON a.attrelid = c.oid
INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
WHERE a.attrelid = ANY(:table_ids::oid[]) AND a.attnum > 0;
