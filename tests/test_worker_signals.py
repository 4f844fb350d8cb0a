"""Signals of a program that runs workers: each worker of the process stops, and the program's own handlers stay."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from goqueue import JobStatus, NewJob, PostgresStorage
from tests.commands import SECONDS

HEAD = """
import asyncio, logging, os, signal, sys, threading, time
from datetime import timedelta
from signal import SIGINT, SIGTERM
from goqueue import AsyncPostgresStorage, AsyncWorker, PostgresStorage, Worker, WorkerConfig

kind, url = sys.argv[1:]
calls = []
signal.signal(SIGINT, signal.default_int_handler)  # a background job of a shell ignores it

def say(*said):
    print(*said, flush=True)

def kill(number=SIGTERM):
    os.kill(os.getpid(), number)

def own(number, frame):
    calls.append(signal.Signals(number).name)

class Started(logging.Handler):
    "Calls a function in a thread once this number of workers run."
    def __init__(self, call, count=1):
        super().__init__()
        self.call, self.count = call, count
        logger = logging.getLogger("goqueue.worker")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
    def emit(self, record):
        self.count -= " starts: " in record.getMessage()
        if self.count == 0:
            logging.getLogger("goqueue.worker").removeHandler(self)
            threading.Thread(target=self.call).start()

def run(handlers, before=lambda: None, **options):
    "Run a worker of either kind in the main thread, and call `before` when it runs."
    Started(before)
    config = WorkerConfig(poll_interval=timedelta(seconds=0.1), shutdown_timeout=timedelta(seconds=20))
    if kind == "threads":
        with PostgresStorage.open(url) as store:
            return Worker(handlers).run(store, config, **options)
    async def main():
        async with await AsyncPostgresStorage.open(url) as store:
            return await AsyncWorker(handlers).run(store, config, **options)
    return asyncio.run(main())

def usual():
    return signal.getsignal(SIGTERM) is signal.SIG_DFL and signal.getsignal(SIGINT) is signal.default_int_handler
"""
BOTH = pytest.mark.parametrize("kind", ["threads", "tasks"])
TASKS = pytest.mark.parametrize("kind", ["tasks"])
Program = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def program(kind: str, goqueue_store: PostgresStorage, goqueue_database: str, tmp_path: Path) -> Program:
    """Return a function that runs a program with a worker of this kind, and returns its exit status and its lines."""

    def run(text: str) -> tuple[int, list[str]]:
        file = tmp_path / "program.py"
        file.write_text(HEAD + textwrap.dedent(text))
        command = [sys.executable, str(file), kind, goqueue_database]
        ended = subprocess.run(command, stdout=subprocess.PIPE, timeout=SECONDS, text=True, check=False)
        return ended.returncode, ended.stdout.splitlines()

    return run


TWO = """
async def main(first_ends_first):
    async with await AsyncPostgresStorage.open(url) as store:
        workers = [AsyncWorker({"t": print}) for _ in range(2)]
        runs = [asyncio.create_task(worker.run(store)) for worker in workers]
        await asyncio.sleep(0.5)
        if first_ends_first:
            workers[0].stop()
            await runs[0]
        kill(number)
        say(await asyncio.gather(*runs))
"""


@TASKS
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("first_ends_first", [False, True])
def test_one_signal_stops_both_workers_of_a_loop(program: Program, number: str, first_ends_first: bool) -> None:
    text = f"number = {number}\n{TWO}\nasyncio.run(main({first_ends_first}))\nsay(usual())"
    assert program(text) == (0, ["[0, 0]", "True"])


@pytest.mark.parametrize("kind", ["threads"])
def test_a_signal_also_stops_the_workers_of_other_threads(program: Program) -> None:
    text = """
        with PostgresStorage.open(url) as store:
            thread = threading.Thread(target=lambda: say("other", Worker({"t": print}).run(store)))
            Started(kill, 2)
            thread.start()
            say(run({"t": print}))
            thread.join()
    """
    code, lines = program(text)
    assert (code, sorted(lines)) == (0, ["0", "other 0"])


@BOTH
def test_the_programs_own_handler_is_called_too_and_stays(program: Program) -> None:
    text = """
        signal.signal(SIGTERM, own)
        run({"t": print}, kill)
        say(calls, signal.getsignal(SIGTERM) is own)
        kill()
        say(calls)
    """
    assert program(text) == (0, ["['SIGTERM'] True", "['SIGTERM', 'SIGTERM']"])


@BOTH
def test_an_error_of_the_programs_own_handler_is_raised_after_the_shutdown(
    program: Program, goqueue_store: PostgresStorage
) -> None:
    job = goqueue_store.create_job(NewJob(job_type="t"))
    text = """
        signal.signal(SIGTERM, lambda *_: sys.exit(5))
        if kind == "threads":
            def handle(job):
                kill()
                time.sleep(1)
        else:
            async def handle(job):
                kill()
                await asyncio.sleep(1)
        run({"t": handle})
    """
    assert program(text) == (5, [])
    assert goqueue_store.get_job(job.id).status == JobStatus.COMPLETED


@BOTH
def test_a_handler_that_is_set_during_the_run_stays(program: Program) -> None:
    text = """
        def replace():  # only the main thread can, so at the next signal
            kill(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, lambda *_: (signal.signal(SIGTERM, own), kill(SIGINT)))
        run({"t": print}, replace)
        say(signal.getsignal(SIGTERM) is own)
        run({"t": print}, kill)
        say(calls, signal.getsignal(SIGTERM) is own, signal.getsignal(SIGINT) is signal.default_int_handler)
    """
    assert program(text) == (0, ["True", "['SIGTERM'] True True"])


@BOTH
def test_a_worker_leaves_signals_alone_if_told_to(program: Program) -> None:
    text = """
        def look(number, frame):
            say(signal.getsignal(SIGTERM) is signal.SIG_DFL)
            kill()
        signal.signal(signal.SIGUSR1, look)
        run({"t": print}, lambda: kill(signal.SIGUSR1), handle_signals=False)
    """
    assert program(text) == (-signal.SIGTERM, ["True"])


@BOTH
def test_a_handler_from_a_run_that_has_ended_has_the_effect_from_before(program: Program) -> None:
    text = """
        seen = []
        signal.signal(signal.SIGUSR1, lambda *_: (seen.append(signal.signal(SIGTERM, own)), kill(SIGINT)))
        run({"t": print}, lambda: kill(signal.SIGUSR1))
        signal.signal(SIGTERM, seen[0])  # as a server does that ends after the worker
        kill()
        say("still here")
    """
    assert program(text) == (-signal.SIGTERM, [])


@BOTH
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no fork here")
def test_a_process_that_a_handler_forks_ends_at_the_first_signal(
    program: Program, goqueue_store: PostgresStorage
) -> None:
    goqueue_store.create_job(NewJob(job_type="t"))
    text = """
        import multiprocessing
        def handle(job):
            context = multiprocessing.get_context("fork")
            ready = context.Event()
            child = context.Process(target=lambda: (ready.set(), time.sleep(60)))
            child.start()
            ready.wait()
            child.terminate()
            child.join()
            say(child.exitcode)
        say(run({"t": handle}, until_empty=True))
    """
    assert program(text) == (0, [str(-signal.SIGTERM), "1"])


@TASKS
def test_a_second_signal_ends_a_process_with_two_workers(program: Program) -> None:
    text = """
        begun = asyncio.Event()
        async def slow(job):
            begun.set()
            await asyncio.sleep(50)
        async def main():
            async with await AsyncPostgresStorage.open(url) as store:
                await store.create_job(NewJob(job_type="t"))
                runs = [asyncio.create_task(AsyncWorker({"t": slow}).run(store)) for _ in range(2)]
                await begun.wait()
                kill()
                await asyncio.sleep(1)
                kill()
                await asyncio.gather(*runs)
        from goqueue import NewJob
        asyncio.run(main())
    """
    assert program(text) == (-signal.SIGTERM, [])
