"""`tauraft up`: a node that lives beside the application, until SIGTERM or SIGINT."""

from __future__ import annotations

import gc
import json
import logging
import signal
import threading
from typing import Any

import click

from tauraft.cli.main import Target, targeted


@click.command()
@click.argument("namespace_argument", metavar="NAMESPACE", required=False)
@click.option("--listen", multiple=True, help="Multiaddr to listen on; /ip4/127.0.0.1/tcp/0 by default.")
@click.option("--peer", "peers", multiple=True, help="Multiaddr of another node; may be repeated.")
@click.option("--expect", type=click.IntRange(1), default=None, help="How many members the first cluster has.")
@click.option("--preset", type=click.Choice(["local", "regional", "global"]), default=None, help="regional by default.")
@click.option("--force-bootstrap", is_flag=True, help="Form a cluster now, alone.")
@click.option("--insecure", is_flag=True, help="Allow listening beyond loopback without a key.")
@click.option("--plugin", "plugins", multiple=True, metavar="MODULE", help="A plugin to load; may be repeated.")
@targeted
def up(
    target: Target,
    namespace_argument: str | None,
    listen: tuple[str, ...],
    peers: tuple[str, ...],
    expect: int | None,
    preset: Any,
    force_bootstrap: bool,
    insecure: bool,
    plugins: tuple[str, ...],
) -> None:
    """Run a node of NAMESPACE until SIGTERM or SIGINT."""
    import importlib
    import os

    import tauraft

    say_what_is_logged()
    loaded = []
    for name in plugins:
        try:
            loaded.append(importlib.import_module(name))
        except ImportError as error:
            raise click.UsageError(f"the plugin {name} cannot be imported: {error}") from error
    given: dict[str, Any] = {
        "data_dir": target.data_dir,
        "preset": preset,
        "listen": listen,
        "peers": peers,
        "expect": expect,
        "force_bootstrap": force_bootstrap,
        "encryption_key": target.key(),
        "insecure": insecure,
        "plugins": loaded,
    }
    # What was not said is left to the environment and tauraft.toml.
    said = {name: value for name, value in given.items() if value not in (None, False, (), [])}
    cluster = tauraft.Cluster(namespace_argument or target.required_namespace(), **said, label="tauraft up")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with cluster:
        ready = {
            "event": "ready",
            "namespace": cluster.namespace,
            "peer_id": cluster.peer_id,
            "pid": os.getpid(),
            "addresses": list(cluster.addresses),
            "state": cluster.state,
        }
        if target.as_json:
            click.echo(json.dumps(ready))
        else:
            click.echo(f"{cluster.namespace} is up: {cluster.state}, {' '.join(cluster.addresses)}; Ctrl-C ends it")
        # What was loaded and built until now stays: no full pass of the collector, which stops everyone, need look at it.
        gc.freeze()
        stop.wait()
        gc.unfreeze()


def say_what_is_logged() -> None:
    """Warnings and errors of the library go to stderr: what is waited for, what an operator should know."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("tauraft").addHandler(handler)
