"""`goqueue queues`: pause and resume queues."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from goqueue.cli.common import (
    EXIT_CODES,
    AsJson,
    ConfigFile,
    aware_time,
    duration,
    in_utc,
    open_store,
    print_json,
    print_line,
    printable,
    saying,
)
from goqueue.validation import check_time

queues = typer.Typer(help="Pause and resume queues.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@queues.command("pause", epilog=EXIT_CODES)
def pause_queue(
    *,
    name: Name,
    until: Annotated[
        datetime | None,
        typer.Option(
            parser=aware_time, metavar="TIME", help="The end: ISO 8601 with a zone, such as 2026-01-31T08:00Z."
        ),
    ] = None,
    length: Annotated[
        timedelta | None,
        typer.Option("--for", parser=duration, metavar="2h", help="The length of the pause, by this machine's clock."),
    ] = None,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Pause a queue: claims skip it until the end of the pause, or until it is resumed.

    Running jobs continue, and jobs can be added. A second pause replaces the
    first. `goqueue stats` shows paused queues.
    """
    if until is not None and length is not None:
        raise typer.BadParameter("give either --until or --for")
    if length is not None:
        until = datetime.now(UTC) + length
    if until is not None and (until := check_time("until", until)) <= datetime.now(UTC):
        raise typer.BadParameter(f"{in_utc(until)} has passed, by this machine's clock; to end a pause, use `resume`")
    with open_store(file) as store:
        store.pause_queue(name, until=until)
    end = "resumed" if until is None else in_utc(until)
    done = f"{printable(name)} is paused until {end}"
    with saying(done):
        if as_json:
            print_json({"queue": name, "paused_until": until})
        else:
            print_line(done)


@queues.command("resume", epilog=EXIT_CODES)
def resume_queue(*, name: Name, file: ConfigFile = None, as_json: AsJson = False) -> None:
    """End the pause of a queue, and wake its idle workers."""
    with open_store(file) as store:
        was_paused = store.resume_queue(name)
    done = f"{printable(name)} is resumed" if was_paused else f"{printable(name)} was not paused"
    with saying(done):
        if as_json:
            print_json({"queue": name, "was_paused": was_paused})
        else:
            print_line(done)
