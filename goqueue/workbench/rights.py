"""Roles and rights: as roles.sql creates them, and a database's differences. Nothing is changed.

The statements here are advice that is shown and never executed.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from psycopg import Connection, sql

from goqueue.files import read_shipped, run_command, shipped_folder
from goqueue.postgres.admin_queries import admin_queries
from goqueue.schemas import DEFAULT_SCHEMA, render
from goqueue.workbench.findings import Check, Finding, Level, advice_in, ended
from goqueue.workbench.schema import expected_schema, read_schema, show_whole_names

#: The roles of migrations/roles/roles.sql.
ROLES = ("goqueue_operator", "goqueue_owner", "goqueue_producer", "goqueue_reader", "goqueue_worker")


class Right(NamedTuple):
    """One fact about rights, from list_rights: an owner, a grant, a policy …"""

    kind: str
    object: str
    role: str
    detail: str


class Rights(NamedTuple):
    """The rights that roles.sql creates: the facts, and for each role the names of the queries that it can run."""

    facts: set[Right]
    queries: dict[str, list[str]]


def read_rights(connection: Connection[Any], schema: str = DEFAULT_SCHEMA) -> set[Right]:
    """Return the rights in the schema, on a connection in autocommit mode. Query: list_rights."""
    queries = admin_queries(schema)
    with connection.transaction(force_rollback=True):
        show_whole_names(connection)
        return {Right(*row) for row in queries.list_rights(connection)}


def expected_rights(schema: str = DEFAULT_SCHEMA) -> Rights:
    """Return the rights that the shipped roles.sql creates, from migrations/roles/rights.json."""
    document = json.loads(render(read_shipped("migrations", "roles/rights.json"), schema))
    return Rights({Right(*row) for row in document["rights"]}, document["queries"])


def roles_script() -> Path:
    """Return the path of the shipped roles.sql."""
    return shipped_folder("migrations") / "roles" / "roles.sql"


RUN_ROLES = run_command("roles.sql")

#: Beyond this number of statements, the advice is to run roles.sql.
_MOST_STATEMENTS = 4
_JOBS = ("TABLE goqueue.jobs", "TABLE goqueue.job_failures")


class _Drift(NamedTuple):
    """The facts of one database, and the missing and extra ones compared with roles.sql, by kind."""

    expected: set[Right]
    missing: dict[str, list[Right]]
    extra: dict[str, list[Right]]
    #: The expected grants that a role has in another way: through PUBLIC, or on the whole table instead of a column.
    implied: set[Right]
    schema: str

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of roles.sql for this schema."""
        return tuple(self.name(role) for role in ROLES)

    def name(self, text: str) -> str:
        """Return the name for this schema of a role or an object."""
        return render(text, self.schema)


def _compare(connection: Connection[Any], schema: str) -> tuple[set[Right], _Drift]:
    """Return the rights in this database, and their differences from those of roles.sql. Query: list_rights."""
    expected, found = expected_rights(schema).facts, read_rights(connection, schema)
    known, present = ({right.object for right in side if right.kind == "owner"} for side in (expected, found))
    roles = {right.object for right in found if right.kind == "role"}
    # Missing objects belong to the check schema. Other owners' objects are their owner's concern.
    absent, foreign = known - present, present - known
    columns = {thing.name for thing in read_schema(connection, schema) if thing.kind == "column"}
    implied = {right for right in expected - found if _is_implied(right, found)}
    ours = {render(role, schema) for role in ROLES}
    return found, _Drift(
        expected,
        _by_kind(
            right
            for right in expected - found - implied
            if right.object not in absent
            and right.role not in ours - roles
            and (not (column := _column(right)) or column in columns)
        ),
        _by_kind(right for right in found - expected if right.object not in foreign),
        implied,
        schema,
    )


def _is_implied(right: Right, found: set[Right]) -> bool:
    details = (right.detail, right.detail.partition(" (")[0])
    return right.kind == "grant" and any(
        right._replace(role=role, detail=detail) in found for role in (right.role, "PUBLIC") for detail in details
    )


def needed_restore(connection: Connection[Any], schema: str = DEFAULT_SCHEMA) -> str:
    """Return why roles.sql must run again, with the command; empty if it need not, or never ran in this database.

    Query: list_rights.
    """
    found, drift = _compare(connection, schema)
    if not any(right.role in drift.roles for right in found if right.kind in ("owner", "grant")):
        return ""
    lacking = sorted({"goqueue_owner" if right.role == "OWNER" else right.role for right in drift.missing["grant"]})
    owners = sorted({right.role for right in drift.extra["owner"]})
    reasons = [f"{', '.join(lacking)} {'lacks' if len(lacking) == 1 else 'lack'} rights"] if lacking else []
    if owners:
        verb = "owns" if len(owners) == 1 else "own"
        reasons.append(f"{', '.join(owners)} {verb} objects that goqueue_owner should own")
    return advice_in(f"Run roles.sql again: {', and '.join(reasons)}.  {RUN_ROLES}", schema) if reasons else ""


def check_roles(connection: Connection[Any], schema: str = DEFAULT_SCHEMA) -> Check:
    """Compare the rights in this database with those of roles.sql. Query: list_rights."""
    found, drift = _compare(connection, schema)
    findings = [
        finding
        for compare in (_roles, _members, _owners, _row_security, _policies, _grants, _default_grants)
        for finding in compare(drift)
    ]
    roles = [right for right in found if right.kind == "role"]
    policies = sum(right.kind == "policy" for right in found)
    return ended(
        "roles",
        f"{len(roles)} roles, {policies} policies and {sum(right.kind == 'grant' for right in found)} grants compared "
        "with migrations/roles/roles.sql",
        findings,
    )


def _by_kind(rights: Iterable[Right]) -> dict[str, list[Right]]:
    kinds = defaultdict(list)
    for right in sorted(rights):
        kinds[right.kind].append(right)
    return kinds


def _roles(drift: _Drift) -> Iterator[Finding]:
    for right in drift.missing["role"]:
        yield Finding(
            Level.FAILED, f"the role {right.object} does not exist", "its logins have lost their rights", RUN_ROLES
        )
    for right in drift.extra["attribute"]:
        severe = right.detail in ("SUPERUSER", "BYPASSRLS")
        yield Finding(
            Level.FAILED if severe else Level.WARNING,
            f"the role {right.object} has the attribute {right.detail}; expected none",
            f"each member has it after SET ROLE {right.object}"
            if right.detail != "LOGIN"
            else "a login as the group is not distinguishable from its members",
            f"ALTER ROLE {right.object} NO{right.detail};",
        )


def _members(drift: _Drift) -> Iterator[Finding]:
    for right in drift.extra["member"]:
        group, member = identifier(right.object), identifier(right.role)
        if right.detail:
            yield Finding(
                Level.WARNING,
                f"the role {right.role} is a member of {right.object} with the admin option",
                f"it can make any role a member of {right.object}",
                f"REVOKE ADMIN OPTION FOR {group} FROM {member};",
            )
        else:
            yield Finding(
                Level.FAILED if right.object in drift.roles else Level.WARNING,
                f"the role {right.role} is a member of {right.object}; expected a member of no role",
                f"each member of {right.role} has the rights of {right.object} too",
                f"REVOKE {group} FROM {member};",
            )
    exempt: dict[tuple[str, str], list[str]] = defaultdict(list)
    for right in drift.extra["exempt"]:
        exempt[right.role, right.detail].append(right.object)
    for (name, reason), groups in exempt.items():
        login = identifier(name)
        what, do = {
            "SUPERUSER": ("a superuser", f"ALTER ROLE {login} NOSUPERUSER;"),
            "BYPASSRLS": ("exempt from row level security", f"ALTER ROLE {login} NOBYPASSRLS;"),
        }.get(reason, (f"a member of {reason}", f"REVOKE {reason} FROM {login};   (and migrate as another login)"))
        yield Finding(
            Level.NOTE
            if reason == drift.name("goqueue_owner") and drift.name("goqueue_producer") not in groups
            else Level.WARNING,
            f"the role {name} is a member of {', '.join(groups)}, and {what}",
            "it sees all jobs, whatever the policies say"
            if reason == "BYPASSRLS"
            else "it sees all jobs and can change the schema, whatever its other roles allow",
            do,
        )


def _owners(drift: _Drift) -> Iterator[Finding]:
    owners = defaultdict(list)
    for right in drift.extra["owner"]:
        owners[right.role].append(right.object)
    for owner, objects in owners.items():
        yield Finding(
            Level.FAILED,
            f"{', '.join(map(_named, objects))} is owned by {owner}; expected goqueue_owner"
            if len(objects) == 1
            else f"{', '.join(map(_named, objects))} are owned by {owner}; expected goqueue_owner",
            "policies don't apply to an owner, views read with its rights, and goqueue_owner can't migrate",
            # A role loses its grants when it becomes the owner.
            RUN_ROLES
            if owner in drift.roles
            else _statements([f"ALTER {thing} OWNER TO goqueue_owner;" for thing in objects]),
        )


def _row_security(drift: _Drift) -> Iterator[Finding]:
    for right in drift.missing["row level security"]:
        yield Finding(
            Level.FAILED,
            f"row level security is off for {_named(right.object)}",
            "no policy applies: each producer sees all jobs",
            f"ALTER {right.object} ENABLE ROW LEVEL SECURITY;",
        )
    for right in drift.extra["row level security"]:
        if right.detail == "FORCE":
            yield Finding(
                Level.FAILED,
                f"row level security is forced on the owner of {_named(right.object)}; expected only for other roles",
                "no policy names the owner: the metrics' views, which read as the owner, see no jobs",
                f"ALTER {right.object} NO FORCE ROW LEVEL SECURITY;",
            )


def _policies(drift: _Drift) -> Iterator[Finding]:
    extra = {(right.object, right.role): right for right in drift.extra["policy"]}
    for right in drift.missing["policy"]:
        table = right.object.removeprefix("TABLE ")
        create = f"CREATE POLICY {right.role} ON {table} {right.detail};"
        if changed := extra.pop((right.object, right.role), None):
            yield Finding(
                Level.FAILED,
                f"the policy {right.role} on {table} is {changed.detail}; expected {right.detail}",
                "its roles see or change the wrong rows",
                f"BEGIN; DROP POLICY {right.role} ON {table}; {create} COMMIT;",
            )
        else:
            yield Finding(
                Level.FAILED,
                f"the policy {right.role} on {table} is missing; expected {right.detail}",
                "without it, its roles see or add no rows",
                create,
            )
    for right in extra.values():
        table = right.object.removeprefix("TABLE ")
        subjects = set(
            right.detail.partition(" TO ")[2].partition(" USING ")[0].partition(" WITH CHECK ")[0].split(", ")
        )
        found = f"the policy {right.role} on {table} is not from roles.sql: {right.detail}"
        drop = f"DROP POLICY {right.role} ON {table};   (or name your own roles in it)"
        if right.detail.startswith("AS RESTRICTIVE") and subjects & {"PUBLIC", *drift.roles}:
            yield Finding(Level.WARNING, found, "its roles see and change fewer rows than they should", drop)
        elif subjects & {"PUBLIC", drift.name("goqueue_producer")}:
            yield Finding(Level.FAILED, found, "producers see or add other producers' rows", drop)
        else:
            yield Finding(Level.NOTE, found)


def _grants(drift: _Drift) -> Iterator[Finding]:
    columns = {thing.name for thing in expected_schema() if thing.kind == "column"}
    for role in (*drift.roles, "OWNER"):
        if lacking := [right for right in drift.missing["grant"] if right.role == role]:
            yield _lack(role, lacking)
    foreign: dict[str, list[Right]] = defaultdict(list)
    for role in ("PUBLIC", *drift.roles):
        beyond = [right for right in drift.extra["grant"] if right.role == role]
        # The grants of a column that a DBA has added are the DBA's concern.
        foreign[role] = [right for right in beyond if (column := _column(right)) and column not in columns]
        if beyond := [right for right in beyond if right not in foreign[role]]:
            yield _excess(role, beyond, drift)
        if options := [right for right in drift.extra["grant option"] if right.role == role]:
            yield Finding(
                Level.FAILED,
                f"{role} has the grant option for {_listed(options)}",
                "its members can grant what only a DBA should grant",
                _statements(_each(options, "REVOKE GRANT OPTION FOR {} ON {} FROM {} CASCADE;")),
            )
    blind = {(right.role, right.object) for right in drift.extra["blind"]}
    for right in drift.extra["grant"]:
        if right.role not in ("PUBLIC", "OWNER", *drift.roles):
            foreign[right.role].append(right)
    for role, rights in foreign.items():
        if not rights:
            continue
        tables = sorted({right.object for right in rights if (role, right.object) in blind})
        yield Finding(
            Level.WARNING if tables else Level.NOTE,
            f"the role {role} has grants that are not from roles.sql: {_listed(rights)}"
            + (f"; it sees no row of {', '.join(map(_named, tables))}" if tables else ""),
            "no policy of row level security names it" if tables else "",
            f"GRANT goqueue_reader TO {identifier(role)};   (or write a policy for it)" if tables else "",
        )


def _lack(role: str, lacking: list[Right]) -> Finding:
    name = "goqueue_owner" if role == "OWNER" else role
    return Finding(
        Level.FAILED,
        f"{name} lacks {_listed(lacking)}",
        "its work fails: permission denied",
        _statements(_each([right._replace(role=name) for right in lacking], "GRANT {} ON {} TO {};")),
    )


def _excess(role: str, beyond: list[Right], drift: _Drift) -> Finding:
    statements = _each(beyond, "REVOKE {} ON {} FROM {};")
    # Revoking a privilege on a table also revokes it on the table's columns. Revoking it from PUBLIC takes it from the
    # roles that have it only there.
    revoked = {(right.object, right.detail) for right in beyond}
    lost = [
        right._replace(role=drift.name("goqueue_owner") if right.role == "OWNER" else right.role)
        for right in sorted(drift.expected)
        if right.kind == "grant"
        and (right.role == role or (role == "PUBLIC" and right in drift.implied))
        and any((right.object, detail) in revoked for detail in (right.detail, right.detail.partition(" (")[0]))
    ]
    if lost:
        again = [
            statement
            for one in drift.roles
            for statement in _each([right for right in lost if right.role == one], "GRANT {} ON {} TO {};")
        ]
        statements = ["BEGIN;", *statements, *again, "COMMIT;"]
    reads_others = all(right.detail == "SELECT" and right.object not in map(drift.name, _JOBS) for right in beyond)
    return Finding(
        Level.WARNING if reads_others else Level.FAILED,
        f"{role} has {_listed(beyond)}; expected " + ("no grant" if role == "PUBLIC" else "less"),
        "every role of the server has it" if role == "PUBLIC" else "it can do more than it should",
        _statements(statements),
    )


def _default_grants(drift: _Drift) -> Iterator[Finding]:
    for right in drift.missing["default grant"]:
        yield Finding(
            Level.WARNING,
            f"{right.role} does not get {right.detail} that goqueue_owner will create in the schema",
            "it can't read a later migration's objects until roles.sql is run again",
            f"ALTER DEFAULT PRIVILEGES {right.object} GRANT {right.detail} TO {right.role};",
        )
    for right in drift.extra["default grant"]:
        known = right.role in ("PUBLIC", *drift.roles)
        role = "PUBLIC" if right.role == "PUBLIC" else identifier(right.role)
        yield Finding(
            Level.WARNING if known else Level.NOTE,
            f"{right.role} gets {right.detail} that are created later ({right.object}); not from roles.sql",
            "it gets rights on a later migration's objects" if known else "",
            f"ALTER DEFAULT PRIVILEGES {right.object} REVOKE {right.detail} FROM {role};" if known else "",
        )


def _column(right: Right) -> str:
    """Return the table and column that a grant is on (``jobs.id``); empty for a grant on the whole table."""
    _, _, column = right.detail.partition(" (") if right.kind.startswith("grant") else ("", "", "")
    return f"{right.object.rpartition('.')[2]}.{column.rstrip(')')}" if column else ""


def _privileges(details: Iterable[str]) -> str:
    """Return ``SELECT, UPDATE (error, status)`` for pairs of a privilege and a column."""
    columns: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for detail in details:
        privilege, _, column = detail.partition(" (")
        columns[privilege, bool(column)].append(column.rstrip(")"))
    return ", ".join(
        f"{privilege} ({', '.join(names)})" if is_column else privilege
        for (privilege, is_column), names in columns.items()
    )


def _by_object(rights: Iterable[Right]) -> dict[str, list[Right]]:
    objects: dict[str, list[Right]] = defaultdict(list)
    for right in rights:
        objects[right.object].append(right)
    return objects


def _listed(rights: Iterable[Right]) -> str:
    """Return ``SELECT on goqueue.jobs; USAGE on the schema goqueue`` for rights."""
    return "; ".join(
        f"{_privileges(right.detail for right in some)} on {_named(thing)}"
        for thing, some in _by_object(rights).items()
    )


def _each(rights: Iterable[Right], statement: str) -> list[str]:
    """Return a statement for each object of one role's rights."""
    return [
        statement.format(
            _privileges(right.detail for right in some),
            thing,
            "PUBLIC" if some[0].role == "PUBLIC" else identifier(some[0].role),
        )
        for thing, some in _by_object(rights).items()
    ]


def _statements(statements: list[str]) -> str:
    return " ".join(statements) if len(statements) <= _MOST_STATEMENTS else RUN_ROLES


def _named(thing: str) -> str:
    """Return an object's name for a sentence; for tables and functions, the name alone."""
    kind, _, name = thing.partition(" ")
    return name if kind in ("TABLE", "ROUTINE") else f"the {kind.lower()} {name}"


def identifier(name: str) -> str:
    """Return a role's name for a statement."""
    is_ours = re.fullmatch(rf"(?:{'|'.join(ROLES)})(?:_[a-z0-9_]+)?", name)
    return name if is_ours else sql.Identifier(name).as_string(None)
