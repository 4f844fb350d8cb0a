"""`goqueue work`: run a program's worker."""

import asyncio
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec.structs import replace

from goqueue.cli.common import AsJson, ConfigFile, print_json, print_line, saying
from goqueue.config import Config, load_config
from goqueue.counts import counted
from goqueue.logs import configure_logging
from goqueue.postgres.store import PostgresStorage
from goqueue.postgres.store_async import AsyncPostgresStorage
from goqueue.work.worker import Worker
from goqueue.work.worker_async import AsyncWorker


def work(
    *,
    target: Annotated[
        str,
        typer.Argument(metavar="MODULE:NAME", help="The worker: app.jobs:worker is `worker` in app/jobs.py."),
    ],
    queue: Annotated[
        list[str] | None,
        typer.Option(help="Claim jobs from this queue; repeatable.", show_default="the configured queues"),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Number of jobs to run at the same time.", show_default="the configured number")
    ] = None,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="End when no job is due or running, except in paused queues.")
    ] = False,
    worker_id: Annotated[
        str | None,
        typer.Option(help="Name recorded in the jobs that it holds.", show_default="host, process id, random part"),
    ] = None,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Run a worker of your program, with the configured settings.

    At the first SIGTERM or Ctrl-C, it releases the jobs that it has not started
    and waits for the running ones. A second signal ends it at once. Modules in
    the working directory are found too.
    """
    config = load_config(file)
    given: dict[str, Any] = {"queues": tuple(queue) if queue else None, "concurrency": concurrency}
    given = {name: value for name, value in given.items() if value is not None}
    config = replace(config, worker=replace(config.worker, **given))
    configure_logging(config.logging)
    worker = _find(target)
    if isinstance(worker, Worker):
        with PostgresStorage.open(config) as store:
            count = worker.run(store, config, worker_id=worker_id, until_empty=until_empty)
    else:
        count = asyncio.run(_work(worker, config, worker_id, until_empty=until_empty))
    done = f"{counted(count)} completed"
    with saying(done):
        if as_json:
            print_json({"completed": count})
        else:
            print_line(done)


async def _work(worker: AsyncWorker, config: Config, worker_id: str | None, *, until_empty: bool) -> int:
    async with await AsyncPostgresStorage.open(config) as store:
        return await worker.run(store, config, worker_id=worker_id, until_empty=until_empty)


def _find(target: str) -> Worker | AsyncWorker:
    name, _, attribute = target.partition(":")
    if not (all(part.isidentifier() for part in name.split(".")) and attribute):
        raise typer.BadParameter(f"{target!r} is not of the form MODULE:NAME, such as app.jobs:worker")
    with suppress(OSError):  # the working directory no longer exists
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the module exists, but not one that it imports
        raise typer.BadParameter(f"there is no module {error.name} in {sys.path[0]} or on Python's path") from None
    found: Any = getattr(module, attribute, None)
    if isinstance(found, (Worker, AsyncWorker)):
        return found
    names = [each for each, value in vars(module).items() if isinstance(value, (Worker, AsyncWorker))]
    what = f"is a {type(found).__name__}, not a Worker or AsyncWorker" if found is not None else "does not exist"
    raise typer.BadParameter(f"{target} {what}; the module's workers: {', '.join(names) or 'none'}")
