"""A web application whose workers share a stock under a lock, and a job that one of them does each time.

    uvicorn web_app:app --workers 4
    gunicorn web_app:app --preload --workers 4 --worker-class asgi

Each worker makes a member of the same cluster: on one host they share a data directory, so one of them runs the replica, and the others are its
clients and stand by for it. The cluster is made when the module is imported, which does no I/O, and started by each worker once
it runs, after the fork.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import tauraft

STOCK = int(os.environ.get("STOCK", "100"))
REPORT_EVERY_S = int(os.environ.get("REPORT_EVERY_S", "60"))

cluster = tauraft.AsyncCluster("/raft/web")


async def buy(request: Request) -> JSONResponse:
    """One piece, for one buyer: the lock makes reading and writing one step for all workers."""
    async with cluster.lock("stock", timeout=30) as hold:
        entry = await cluster.kv.get("stock")
        left = STOCK if entry is None else int(entry.value)
        if left == 0:
            return JSONResponse({"sold": False, "worker": os.getpid()}, status_code=409)
        # Refused unless the lock is still ours when this is decided, however long we were away.
        await cluster.fenced(hold.token).put("stock", str(left - 1))
    return JSONResponse({"sold": True, "left": left - 1, "worker": os.getpid()})


async def reports(request: Request) -> JSONResponse:
    """(tick, worker), the oldest first."""
    return JSONResponse([key.split("/")[1:] for key in await cluster.kv.keys("reports/")])


@cluster.cron(f"@every {REPORT_EVERY_S}s", name="report", run_on="any")
async def report(tick: tauraft.AsyncTick) -> None:
    """Declared by every worker, and run by one of them at each tick; whoever that was, others go on when it is gone."""
    await cluster.kv.put(f"reports/{tick.scheduled_at:%Y-%m-%dT%H:%M:%S}/{os.getpid()}", str(tick.token))


async def not_now(request: Request, error: Exception) -> JSONResponse:
    """What the cluster cannot do at present: said as it is, with whether it may have happened."""
    assert isinstance(error, tauraft.TauraftError)
    return JSONResponse({"error": error.code, "outcome": error.outcome, "message": str(error)}, status_code=503)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with cluster:
        yield


app = Starlette(
    routes=[Route("/buy", buy, methods=["POST"]), Route("/reports", reports)],
    exception_handlers={tauraft.TauraftError: not_now},
    lifespan=lifespan,
)
