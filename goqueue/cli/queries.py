"""`goqueue queries` and `goqueue explain`: the statements, for DBAs."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from psycopg.conninfo import make_conninfo
from rich.console import Group
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from goqueue.cli.common import (
    AsJson,
    CheckFailedError,
    Column,
    ConfigFile,
    console,
    error_console,
    path,
    print_json,
    read_config,
    table,
    write,
)
from goqueue.cli.common import (
    note as say,
)
from goqueue.config import DatabaseConfig
from goqueue.errors import ConfigError, SchemaError
from goqueue.postgres.admin_queries import admin_queries
from goqueue.postgres.options import identity
from goqueue.postgres.pool import connect
from goqueue.postgres.translate import translate
from goqueue.schemas import render
from goqueue.testing.scratch import REFUSALS, SCENARIOS, scratch_database, seed
from goqueue.workbench.explain import Explainer, Explanation, ModeResult, example_values, explain_query, explainable
from goqueue.workbench.notes import Columns, QueryNote, psql_text, read_columns, read_notes
from goqueue.workbench.plans import Flag, Plan, plan_nodes

SqlFolder = Annotated[
    Path | None,
    typer.Option("--sql-dir", parser=path, metavar="DIR", help="Folder of SQL files that replace the shipped ones."),
]


# --- goqueue queries ------------------------------------------------------------------------------------------------


def show_queries(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this query as SQL for psql.")] = None,
    times: Annotated[bool, typer.Option("--times", help="Show each query's statistics (pg_stat_statements).")] = False,
    sql_dir: SqlFolder = None,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the queries: purpose, parameters, result, index and locks of each.

    With a NAME it prints that query for psql, as a PREPARE with typed
    parameters: goqueue queries get_job > get_job.sql. With --times it shows
    calls, times and rows of each query in the configured database, the most
    expensive first. The query statement_times returns them.
    """
    if times:
        if name is not None or sql_dir is not None:
            raise typer.BadParameter("--times excludes NAME and --sql-dir")
        _show_times(read_config(file).database, as_json)
        return
    schema = read_config(file).database.schema
    notes, columns = _notes(sql_dir, file, schema), read_columns(schema)
    if name is not None:
        note = notes[_known(name, notes)]
        if as_json:
            print_json(_as_document(note, columns))
        else:
            write(render(psql_text(note, columns), schema))
    elif as_json:
        print_json([_as_document(note, columns) for note in notes.values()])
    else:
        for sql_file, members in groupby(notes.values(), key=lambda note: note.file):
            console().print(Text(sql_file, style="bold underline"), "")
            for note in members:
                console().print(_entry(note, columns))


def _as_document(note: QueryNote, columns: Columns) -> dict[str, Any]:
    return {
        "name": note.name,
        "file": note.file,
        "purpose": note.purpose,
        "parameters": note.types,
        "result": note.result,
        "returns": note.returns,
        "columns": [{"name": column, "type": kind} for column, kind in columns.get(note.name, ())],
        "index": note.index,
        "locks": note.locks,
        "notes": note.notes,
        "sql": note.statement,
    }


def _entry(note: QueryNote, columns: Columns) -> Group:
    described = ", ".join(f"{column} {kind}" for column, kind in columns.get(note.name, ()))
    rows = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    for heading, text in [
        ("for", note.purpose),
        ("parameters", ", ".join(f"{parameter} {kind}" for parameter, kind in note.types.items()) or "none"),
        ("result", f"{note.result}: {note.returns}"),
        ("columns", described),
        ("index", note.index),
        ("locks", note.locks),
        ("notes", note.notes),
    ]:
        if text:
            rows.add_row(heading, Text(text))
    return Group(Text(note.name, style="bold cyan"), rows, "")


def _show_times(config: DatabaseConfig, as_json: bool) -> None:
    names = ("name", "calls", "total_ms", "mean_ms", "max_ms", "rows", "pages", "share")
    try:
        queries = admin_queries(config.schema)
        with connect(config) as connection:
            counted = list(queries.statement_times(connection))
    except (psycopg.errors.UndefinedTable, psycopg.errors.ObjectNotInPrerequisiteState) as error:
        raise SchemaError(
            "this database has no pg_stat_statements, which measures each query: add it to "
            "shared_preload_libraries, restart the server, and run CREATE EXTENSION pg_stat_statements here"
        ) from error
    except psycopg.Error as error:
        raise translate(error) from error
    if as_json:
        print_json([dict(zip(names, row, strict=True)) for row in counted])
        return
    if not counted:
        say("pg_stat_statements has no entry for a query of goqueue in this database.")
        return
    titles = ("calls", "total ms", "mean ms", "max ms", "rows", "pages", "share")
    rows: list[list[str | Text]] = []
    for name, calls, total, mean, longest, row_count, pages, share in counted:
        times = (f"{milliseconds:,.2f}" for milliseconds in (total, mean, longest))
        shown = "" if share is None else f"{share:.1%}"
        rows.append([name, f"{calls:,}", *times, f"{row_count:,}", f"{pages:,}", shown])
    screen = console()
    screen.print(table([Column("query", "left"), *map(Column, titles)], rows, screen.width))


# --- goqueue explain ------------------------------------------------------------------------------------------------


def show_plans(  # noqa: PLR0917 - typer takes options so
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The query to explain.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Explain all queries, and print one line for each.")] = False,
    rows: Annotated[int, typer.Option(min=1000, max=100_000_000, help="Jobs in the scratch table.")] = 1_000_000,
    scenario: Annotated[
        str, typer.Option(metavar="NAME", help=f"The table's contents: {', '.join(SCENARIOS)}.")
    ] = "mixed",
    parameters: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="A parameter's value as text; {a,b} for a list, or null."),
    ] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Use an embedded server instead of the configured one.")
    ] = False,
    sql_dir: SqlFolder = None,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show how the server runs a query on a big table: plans, time, rows read.

    It creates a database (goqueue_explain_...), fills it with --rows jobs,
    explains the query and drops the database. Your own jobs are not touched.
    The next run of the same role drops a database that a killed run has left. A million
    jobs take about 400 MB and 15 seconds. The role needs CREATEDB. Without
    that right, without a configured database, or with --embedded, it uses an
    embedded server, with default settings and without waiting for the disk.

    The query runs with a plan for its values (custom) and with a plan for any
    values (generic, as on goqueue's own connections), each in a transaction
    that is rolled back. Times are the median of five runs without
    instrumentation.

    In a plan, "rows 203 → 8 x 4" is the planner's estimate, the rows that one
    loop returned, and the loops. A time covers all loops.

    Flags mark a table that is read completely (seq scan), 1,000 or more rows
    read and discarded (filter), a sort of more than 10,000 rows, temporary files
    (spill), an estimate wrong by a factor of 100, JIT compilation (jit), and
    an index that the query's comment doesn't name.

    A query that --sql-dir (or the configured folder) changes is explained
    beside the shipped one. It is more expensive if, with either plan, it reads
    more than twice the rows or pages (and 1,000 rows or 100 pages more), takes
    ten times as long (and 10 ms more), or has a flag that the shipped one
    lacks (except estimates and names of indexes).

    The exit status is 3 if a table of 10,000 rows or more is read completely, if
    10,000 rows are read and discarded, or if a changed query is more expensive.
    With fewer --rows than about 200,000, reading a complete table can be right.
    """
    if every == (name is not None):
        raise typer.BadParameter("give either NAME or --all", param_hint="NAME")
    config = read_config(file).database
    schema = config.schema
    notes = _notes(sql_dir, file, schema)
    names = explainable(notes, schema)
    if name is not None:
        names = [_known(name, {key: notes[key] for key in names})]
    if scenario not in SCENARIOS:
        raise typer.BadParameter(f"{scenario!r} is not one of {', '.join(SCENARIOS)}", param_hint="--scenario")
    given = _given(parameters or [], {parameter for each in names for parameter in notes[each].parameters})
    try:
        with _scratch(None if embedded else _configured(config), rows, scenario, schema) as connection:
            header = {
                "server_version": connection.info.parameter_status("server_version"),
                "rows": rows,
                "scenario": scenario,
            }
            examples = example_values(connection, schema)
            explainer = Explainer(connection, notes)
            shipped = Explainer(connection, {note.name: note for note in read_notes(schema=schema)}, prefix="shipped_")
            explained = [explain_query(explainer, each, given, examples, shipped) for each in names]
    except psycopg.Error as error:
        raise translate(error) from error
    if as_json:
        print_json({**header, "queries": explained})
    else:
        about = f"{rows:,} jobs ({scenario}), PostgreSQL {header['server_version']}"
        screen = console()
        is_own = sql_dir is not None or bool(config.sql_dir)
        shown = (
            _summary(explained, about, screen.width) if every else _details(explained[0], about, screen.width, is_own)
        )
        screen.print(shown)
    problems = [
        f"{what} {', '.join(failed)}"
        for what, failed in (
            ("too many rows are read by", [each.name for each in explained if each.has_failed]),
            ("more expensive than the shipped text:", [each.name for each in explained if each.regressions]),
        )
        if failed
    ]
    if problems:
        raise CheckFailedError("; ".join(problems))


def _configured(config: DatabaseConfig) -> str | None:
    """Return libpq's connection string; None if no setting names a server."""
    if not config.url and not any(os.environ.get(name) for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")):
        say("No database is configured: using an embedded server.")
        return None
    return make_conninfo(config.url, **identity(config, "goqueue explain"))


@contextmanager
def _scratch(conninfo: str | None, rows: int, scenario: str, schema: str) -> Iterator[psycopg.Connection[Any]]:
    """Yield the filled scratch database, with a progress bar on standard error."""
    screen = error_console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with ExitStack() as stack:
        with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
            task = progress.add_task("making a scratch database", total=1.0)
            try:
                connection = stack.enter_context(scratch_database(conninfo, rows, schema))
            except REFUSALS as error:
                said = f"A database can't be created there (the role needs CREATEDB): {error.diag.message_primary}."
                progress.console.print(f"{said} Using an embedded server.", soft_wrap=True)
                connection = stack.enter_context(scratch_database(None, rows, schema))
            seed(
                connection,
                rows,
                scenario,
                lambda text, done: progress.update(task, description=text, completed=done),
                schema,
            )
        yield connection


def _summary(explained: list[Explanation], about: str, width: int) -> Group:
    columns = [Column("query", "left"), Column("custom ms"), Column("generic ms"), Column("rows read/given")]
    columns += [Column("pages"), Column("flags", "left", 12)]
    rows: list[list[str | Text]] = []
    for each in explained:
        flags = _kinds([flag for plan in each.plans for flag in plan.flags])
        if each.regressions:
            worse = Text("more expensive than shipped", style="bold red")
            flags = worse.append_text(Text(", ") + flags if flags else Text())
        rows.append([each.name, *_row(each.plans), flags])
        if each.shipped is not None:
            flags = _kinds([flag for plan in each.shipped for flag in plan.flags])
            rows.append([f"  {each.name} as shipped", *_row(each.shipped), flags])
    legend = "Rows and pages are those of the generic plan. goqueue explain NAME shows the plans."
    return Group(Text(about, style="bold"), "", table(columns, rows, width), "", Text(legend, style="dim"))


def _row(plans: list[ModeResult]) -> list[str]:
    custom, generic = plans
    return [
        f"{custom.execution_ms:,.2f}",
        f"{generic.execution_ms:,.2f}",
        f"{generic.rows_read:,.0f}/{generic.rows_returned:,.0f}",
        f"{generic.pages:,}",
    ]


_FIGURES: dict[str, Callable[[ModeResult], str]] = {
    "planning ms": lambda plan: f"{plan.planning_ms:,.2f}",
    "execution ms": lambda plan: f"{plan.execution_ms:,.2f}",
    "  with instruments": lambda plan: f"{plan.instrumented_ms:,.2f}",
    "pages": lambda plan: f"{plan.pages:,}",
    "  not in memory": lambda plan: f"{plan.pages_read:,}",
    "rows read": lambda plan: f"{plan.rows_read:,.0f}",
    "rows returned": lambda plan: f"{plan.rows_returned:,.0f}",
    "rows read per row": lambda plan: "" if plan.rows_read_per_row is None else f"{plan.rows_read_per_row:,.1f}",
}


def _kinds(flags: list[Flag]) -> Text:
    kinds = dict.fromkeys((flag.kind, flag.is_failure) for flag in flags)
    return Text(", ").join(Text(kind, style="bold red" if is_failure else "yellow") for kind, is_failure in kinds)


def _details(explained: Explanation, about: str, width: int, is_own: bool) -> Group:
    values: list[list[str | Text]] = []
    for parameter, value in explained.parameters.items():
        shown = Text("null", style="dim") if value is None else value if len(value) <= 80 else f"{value[:79]}…"
        values.append([parameter, shown])
    parts: list[Any] = [Text.assemble((explained.name, "bold cyan"), " on ", about), ""]
    if values:
        parts += [table([Column("parameter", "left"), Column("value", "left", 20)], values, width), ""]
    pairs = list(zip(explained.plans, explained.shipped or explained.plans, strict=True))
    is_changed = explained.shipped is not None
    titles = [title for plan, _ in pairs for title in ((plan.mode, "as shipped") if is_changed else (plan.mode,))]
    plans = [each for pair in pairs for each in (pair if is_changed else pair[:1])]
    figures: list[list[str | Text]] = [[heading, *map(shown_of, plans)] for heading, shown_of in _FIGURES.items()]
    if is_changed:
        figures.append(["flags", *(_kinds(plan.flags) or "none" for plan in plans)])
    parts += [table([Column("", "left"), *(Column(title, "right", 9) for title in titles)], figures, width), ""]
    parts += _trees(explained.plans)
    if explained.shipped is not None:
        parts += _trees(explained.shipped, " of the shipped text")
    flags = list(dict.fromkeys((flag, plan.mode) for plan in explained.plans for flag in plan.flags))
    parts += [
        Text.assemble((f"{flag.kind}: ", "bold red" if flag.is_failure else "yellow"), flag.text, (f" ({mode})", "dim"))
        for flag, mode in flags
    ] or [Text("no flags", style="green")]
    parts += [
        Text.assemble(("more expensive than shipped: ", "bold red"), each.text, (f" ({each.mode})", "dim"))
        for each in explained.regressions
    ]
    if explained.shipped is not None and not explained.regressions:
        parts.append(
            Text("not more expensive than the shipped text; `goqueue check` compares results and locks", style="green")
        )
    elif is_own and not is_changed:
        parts.append(Text("the same statement as the shipped one", style="dim"))
    return Group(*parts)


def _trees(plans: list[ModeResult], of: str = "") -> Iterator[Any]:
    custom, generic = (Plan(plan.plan) for plan in plans)
    if custom.shape != generic.shape:
        yield _tree(custom, f"custom plan{of}")
        yield ""
        yield _tree(generic, f"generic plan{of}")
    else:
        yield _tree(generic, f"generic plan{of} (the custom one has the same shape)")
    yield ""


def _tree(plan: Plan, title: str) -> Tree:
    tree = Tree(Text(title, style="bold"), guide_style="dim")
    _grow(tree, plan, plan.document["Plan"])
    return tree


def _grow(tree: Tree, plan: Plan, node: dict[str, Any]) -> None:
    flags = plan.flags_of(node)
    style = "" if not flags else "bold red" if any(flag.is_failure for flag in flags) else "yellow"
    what = (node.get(part) for part in ("Node Type", "Relation Name", "CTE Name", "Function Name", "Index Name"))
    label = Text(" ".join(str(part) for part in what if part), style=style)
    if name := node.get("Subplan Name"):
        label = Text.assemble((f"{name}: ", "cyan"), label)
    loops = node.get("Actual Loops", 0)
    if loops:
        # The server reports averages per loop.
        pages = node.get("Shared Hit Blocks", 0) + node.get("Shared Read Blocks", 0)
        figures = f"rows {node['Plan Rows']:,} → {node['Actual Rows']:,.4g}" + (f" x {loops:,.0f}" if loops > 1 else "")
        label.append(f"  {figures}, {node['Actual Total Time'] * loops:,.2f} ms, {pages:,} pages", style="dim")
    else:
        label.append("  never run", style="dim")
    for part in ("Index Cond", "Recheck Cond", "Hash Cond", "Merge Cond", "Join Filter", "Filter", "Sort Key"):
        if part in node:
            condition = node[part] if isinstance(node[part], str) else ", ".join(node[part])
            removed = node.get(f"Rows Removed by {part}", 0)
            label.append(f"\n{part}: {condition}" + (f" (removes {removed:,.0f})" if removed else ""), style="dim")
    for flag in flags:
        label.append(f"\n{flag.kind}: {flag.text}", style=style)
    branch = tree.add(label)
    # A node that was never executed has no figures to show, except for a flag.
    if loops or any(map(plan.flags_of, plan_nodes(node))):
        for child in node.get("Plans", ()):
            _grow(branch, plan, child)


# --- both -----------------------------------------------------------------------------------------------------------


def _notes(sql_dir: Path | None, file: Path | None, schema: str) -> dict[str, QueryNote]:
    if sql_dir is None and (configured := read_config(file).database.sql_dir):
        sql_dir = Path(configured)
    try:
        return {note.name: note for note in read_notes(sql_dir, schema)}
    except (ValueError, OSError) as error:
        raise ConfigError([str(error)]) from error


def _known(name: str, notes: Mapping[str, QueryNote]) -> str:
    if name not in notes:
        close = get_close_matches(name, notes)
        hint = f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(notes)}"
        raise typer.BadParameter(f"{name!r}: {hint}", param_hint="NAME")
    return name


def _given(pairs: list[str], known: set[str]) -> dict[str, str | None]:
    given: dict[str, str | None] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in known:
            expected = ", ".join(sorted(known)) or "nothing, it has no parameters"
            raise typer.BadParameter(f"{pair!r}: NAME=VALUE was expected, with one of {expected}", param_hint="--param")
        given[name] = None if value.lower() == "null" else value
    return given
