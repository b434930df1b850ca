"""The web example, as its servers really run it: four workers, forked or not, preloaded or not."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.examples.conftest import EXAMPLES

pytestmark = pytest.mark.middle
STOCK, BUYERS = 30, 40
PATIENCE_S = 40.0

SERVERS = {
    "uvicorn": lambda port: ["-m", "uvicorn", "web_app:app", "--workers", "4", "--port", str(port)],
    "gunicorn": lambda port: [
        "-m", "gunicorn", "web_app:app", "--preload", "--workers", "4", "--worker-class", "asgi",
        "--bind", f"127.0.0.1:{port}", "--graceful-timeout", "10",
    ],
}  # fmt: skip


class Site:
    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def reports(self) -> list[tuple[str, int]]:
        """(tick, worker)."""
        status, told = self.ask("GET", "/reports")
        assert status == 200, told
        return [(tick, int(pid)) for tick, pid in told]

    def wait_until(self, reason: str, is_so: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                if is_so():
                    return
            except OSError:  # not up yet, or the worker that was asked has just ended
                pass
            assert time.monotonic() < give_up, f"still waiting until {reason}"
            time.sleep(0.1)


@contextmanager
def serving(server: str, directory: Path) -> Iterator[Site]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    state = directory / "state"
    state.mkdir(mode=0o700)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAURAFT_")} | {
        "TAURAFT_STATE_DIR": str(state),
        "TAURAFT_PRESET": "local",
        "HOME": str(directory),
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), *filter(None, sys.path)]),
        "STOCK": str(STOCK),
        "REPORT_EVERY_S": "1",
    }
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *SERVERS[server](port)],
            cwd=directory,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        site = Site(port)
        site.wait_until("it serves and its job runs", lambda: bool(site.reports()))
        yield site
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) in (0, -signal.SIGTERM), log.read_text()
    except BaseException:
        print(log.read_text())
        raise
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


@pytest.mark.parametrize("server", SERVERS)
def test_four_workers_sell_no_piece_twice_and_one_of_them_does_each_job(server: str, tmp_path: Path) -> None:
    with serving(server, tmp_path) as site, ThreadPoolExecutor(8) as buyers:
        sales = list(buyers.map(lambda _: site.ask("POST", "/buy"), range(BUYERS)))
        assert Counter(status for status, _ in sales) == {200: STOCK, 409: BUYERS - STOCK}
        assert sorted(sale["left"] for status, sale in sales if status == 200) == list(range(STOCK))
        assert len({sale["worker"] for _, sale in sales}) > 1
        site.wait_until("there are more reports", lambda: len(site.reports()) >= 4)
        done = site.reports()
        assert len({tick for tick, _ in done}) == len(done), "a tick was run by two workers"
        if server == "uvicorn":
            return

        # It may be the one that runs the replica: then the others take that over too.
        last, reporter = done[-1]
        os.kill(reporter, signal.SIGKILL)
        site.wait_until(
            "others do the job", lambda: any(tick > last and pid != reporter for tick, pid in site.reports())
        )
        assert site.ask("POST", "/buy")[0] == 409
