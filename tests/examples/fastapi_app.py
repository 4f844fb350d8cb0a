"""Orders over HTTP: an order and its job are stored in one transaction, so there is never one without the other.

Run it with ``uvicorn tests.examples.fastapi_app:app``; DATABASE_URL names a migrated database.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

from goqueue import (
    AsyncPostgresStorage,
    DuplicateJobError,
    GoQueueError,
    InvalidJobError,
    JobNotFoundError,
    NewJob,
    StorageUnavailableError,
)

STATUS_OF = {JobNotFoundError: 404, DuplicateJobError: 409, InvalidJobError: 422, StorageUnavailableError: 503}


class Order(BaseModel):
    customer: str
    amount: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    url = os.environ["DATABASE_URL"]
    async with (
        await AsyncPostgresStorage.open(url) as app.state.store,
        AsyncConnectionPool(url, open=False) as app.state.pool,
    ):
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(GoQueueError)
async def say_what_went_wrong(request: Request, error: GoQueueError) -> JSONResponse:
    status = next((status for kind, status in STATUS_OF.items() if isinstance(error, kind)), 500)
    return JSONResponse({"error": type(error).__name__, "detail": str(error)}, status)


@app.post("/orders/{number}", status_code=201)
async def add_order(request: Request, number: int, order: Order) -> dict[str, Any]:
    store: AsyncPostgresStorage = request.app.state.store
    async with request.app.state.pool.connection() as connection:  # one transaction, to the end of the block
        job = await store.bound_to(connection).create_job(
            NewJob(job_type="ship", payload={"order": number}, idempotency_key=f"order-{number}")
        )
        await connection.execute(
            "INSERT INTO orders (number, customer, amount) VALUES (%s, %s, %s)",
            [number, order.customer, order.amount],
        )
    return {"order": number, "job": job.id}


@app.get("/jobs/{job_id}")
async def show_job(request: Request, job_id: UUID) -> dict[str, Any]:
    store: AsyncPostgresStorage = request.app.state.store
    job = await store.get_job(job_id)
    return {"id": job.id, "status": job.status, "attempts": job.attempts, "error": job.last_error}
