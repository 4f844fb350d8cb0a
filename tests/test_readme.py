"""The documents are true: their examples run, their commands exist."""

import asyncio
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import Any

import psycopg
import typer

from goqueue import JobFilter, NewJob, PostgresStorage, cli, load_config
from goqueue.cli.common import EXIT_CODES
from goqueue.migrate import migrations_dir
from tools.documents import documents

ROOT = migrations_dir()
DOCUMENTS = {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in documents()}
README = DOCUMENTS["README.md"]
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
URL = '"postgresql://app@localhost/app"'


def test_the_ten_lines_run(goqueue_database: str, capsys: Any) -> None:
    example = EXAMPLES[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    exec(example.replace(URL, repr(str(goqueue_database))))
    assert "5,001 jobs wait; the newest is {'image': " in capsys.readouterr().out


def test_the_example_in_a_transaction_runs(goqueue_database: str, goqueue_store: PostgresStorage) -> None:
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE orders (id int)")
    example = EXAMPLES[2].replace(URL, repr(str(goqueue_database)))
    exec(example, {"psycopg": psycopg, "store": goqueue_store, "NewJob": NewJob})
    assert [job.payload for job in goqueue_store.list_jobs().jobs] == [{"order": 17}]


def test_the_workers_example_runs(goqueue_database: str, goqueue_store: PostgresStorage, capsys: Any) -> None:
    goqueue_store.create_jobs(NewJob(job_type="send_email", payload={"to": number}) for number in range(25))
    # The worker runs endlessly; here it ends with the jobs.
    example = EXAMPLES[1].replace("worker.run(store)", "worker.run(store, until_empty=True)")
    assert example != EXAMPLES[1]
    example = example.replace(URL, repr(str(goqueue_database)))
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    exec(example, {"__name__": "__main__"})
    assert goqueue_store.count_jobs(JobFilter(status="completed")) == 25
    assert "sending to 24\n" in capsys.readouterr().out


def test_the_examples_of_the_page_on_workers_run(goqueue_store: PostgresStorage, capsys: Any) -> None:
    handlers, loop = re.findall(r"```python\n(.*?)```", DOCUMENTS["docs/worker.md"], re.DOTALL)
    goqueue_store.create_jobs(NewJob(job_type="import_file", payload={"rows": rows}) for rows in (2, 1, -1))
    exec(f"{handlers}\nworker.run(store, until_empty=True)", {"store": goqueue_store})
    assert sorted(capsys.readouterr().out.split("\n")[:-1]) == ["row 0", "row 0", "row 1"]
    assert goqueue_store.count_jobs(JobFilter(status="completed")) == 2
    assert goqueue_store.count_jobs(JobFilter(status="dead")) == 1
    goqueue_store.create_jobs(NewJob(job_type="t", payload=number) for number in range(25))
    # The loop is endless; here it ends with the jobs.
    ending = loop.replace("listener.wait(timedelta(seconds=1))", "break")
    assert ending != loop
    exec(ending, {"store": goqueue_store})
    assert goqueue_store.count_jobs(JobFilter(status="completed")) == 27


def test_the_example_that_releases_orphaned_claims_runs(goqueue_store: PostgresStorage) -> None:
    goqueue_store.create_jobs(NewJob(job_type="t") for _ in range(4))
    known, orphan = goqueue_store.claim_jobs("default", "w1", 2)
    [other] = goqueue_store.claim_jobs("default", "w2")
    [example] = re.findall(r"```python\n(.*?)```", DOCUMENTS["docs/errors.md"], re.DOTALL)
    names = {"store": goqueue_store, "JobFilter": JobFilter, "queues": ["default"], "worker_id": "w1"}
    exec(example, {**names, "working_on": {known.id}})
    statuses = [job.status for job in goqueue_store.get_jobs([known.id, orphan.id, other.id])]
    assert statuses == ["running", "pending", "running"]


def test_the_asynchronous_example_runs(goqueue_database: str, goqueue_store: PostgresStorage) -> None:
    example = EXAMPLES[3].replace(URL, repr(str(goqueue_database)))
    names: dict[str, Any] = {"NewJob": NewJob}
    exec(f"async def example():\n{indent(example, '    ')}\n    return job", names)
    job = asyncio.run(names["example"]())
    assert goqueue_store.list_jobs().jobs == [job]


def test_the_example_configuration_is_valid(tmp_path: Path) -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", DOCUMENTS["docs/settings.md"], re.DOTALL)
    (tmp_path / "goqueue.yaml").write_text(example)
    config = load_config(tmp_path / "goqueue.yaml", environ={})
    assert (config.database.pool_max_size, config.worker.queues, config.logging.format) == (
        20,
        ("default", "mail"),
        "json",
    )


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"(?:`|^    |&& )make ([a-z]+)", "\n".join(DOCUMENTS.values()), re.MULTILINE))
    assert {"run", "test", "lint", "bench"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def commands_of(group: Any, *words: str) -> Iterator[tuple[str, Any]]:
    """Yield each command below ``group``, by its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, *words, name)
        else:
            yield " ".join((*words, name)), command


def test_every_command_but_one_has_json() -> None:
    commands = dict(commands_of(typer.main.get_command(cli.app)))
    assert {"check", "sql diff", "db psql", "jobs list"} <= commands.keys()
    without = [
        name
        for name, command in commands.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    ]
    assert without == ["db psql"]
    assert "all except `db psql` have `--json`" in README


def test_every_exit_status_of_the_help_is_in_the_readme() -> None:
    section = README.partition("Exit status:")[2].partition("\n\n")[0]
    assert re.findall(r"\b\d+\b", section) == re.findall(r"\b\d+\b", EXIT_CODES) == ["0", "1", "2", "3", "130"]


PLANNER = r"enable_\w+|jit\w*|plan_cache_mode|\w+_(?:tuple|page|operator|setup)_cost|\w+_collapse_limit|geqo\w*"


def test_no_document_or_message_sets_a_planner_setting_on_a_role_a_database_or_the_server() -> None:
    files = [file for kind in ("*.md", "*.sql", "*.yml", "*.yaml", "*.toml") for file in ROOT.glob(f"[!.]*/**/{kind}")]
    files += [*ROOT.glob("*.md"), *ROOT.glob("*.yml"), *(ROOT / "goqueue").rglob("*.py")]
    assert len(files) > 40
    wanted = re.compile(rf"ALTER\s+(?:ROLE|USER|DATABASE|SYSTEM)\b[^;\n]*\bSET\s+(?:{PLANNER})\b", re.IGNORECASE)
    assert {
        str(file.relative_to(ROOT)): found for file in files if (found := wanted.findall(file.read_text("utf-8")))
    } == {}


def test_the_login_for_pgbouncer_gets_limits_alone(goqueue_connection: psycopg.Connection[Any]) -> None:
    statements = re.findall(r"^ {4}((?:CREATE|ALTER) .*)$", DOCUMENTS["docs/pgbouncer.md"], re.MULTILINE)
    assert len(statements) == 4
    name = f"shop_jobs_{secrets.token_hex(4)}"
    with goqueue_connection.transaction(force_rollback=True):
        for statement in statements:
            goqueue_connection.execute(statement.replace("shop_jobs", name).encode())
        [(settings,)] = goqueue_connection.execute(
            "SELECT setconfig FROM pg_db_role_setting WHERE setrole = %s::regrole", [name]
        )
    limits = {"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"}
    assert {setting.partition("=")[0] for setting in settings} == limits
