"""The root command: shared options, commands loaded when asked for, and the one place where errors become exit codes.

Exit: 0 done; 1 refused, or not there; 2 usage; 3 unavailable or unknown outcome; 4 wrong key, data directory
or plugin; 124 a wait timed out; `lock run`: the command's own, 125 if the lock was lost.
An error is one sentence, or with ``--json`` one object on stderr; never a traceback.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import tauraft

# Command -> where it is. Nothing else is imported for `tauraft --help`.
COMMANDS = {
    "up": ("tauraft.cli.up:up", "Run a node of a namespace until told to stop."),
    "status": ("tauraft.cli.cluster:status", "What the node knows of its cluster."),
    "members": ("tauraft.cli.cluster:members", "Who belongs to the cluster."),
    "kv": ("tauraft.cli.kv:kv", "Put, get, delete and list keys."),
    "lock": ("tauraft.cli.lock:lock", "Run a command under a lock, see who holds one, or break it."),
    "election": ("tauraft.cli.election:election", "See who leads, or run a command while leading."),
    "barrier": ("tauraft.cli.barrier:barrier", "Gates, latches, double and cyclic barriers."),
    "group": ("tauraft.cli.group:group", "Who is in a group, and who has which partition."),
    "explain": ("tauraft.cli.explain:explain", "Why something is as it is, and what will change it."),
    "queue": ("tauraft.cli.queue:queue", "Put items, look at a queue, and see to its dead ones."),
    "cron": ("tauraft.cli.cron:cron", "See jobs and their ticks; put, pause, trigger and delete jobs."),
    "counter": ("tauraft.cli.counter:counter", "Add to a counter, or read it."),
    "sql": ("tauraft.cli.cluster:sql", "Query the cluster's state and history."),
    "new-plugin": ("tauraft.cli.new_plugin:new_plugin", "Write a package with a state machine of your own."),
    "twin": ("tauraft.cli.twin:twin", "Generate the blocking twin of an async handle."),
    "demo": ("tauraft.cli.demo:demo", "Three nodes on this machine, one killed, nothing lost."),
}


@dataclass(frozen=True, slots=True)
class Target:
    """Which cluster a command is for, and how it prints."""

    namespace: str | None
    data_dir: str | None
    addresses: tuple[str, ...]
    key_file: str | None
    timeout: float
    patience: float | None  # of a wait: None, for ever, unless --timeout was given
    as_json: bool

    def required_namespace(self) -> str:
        if not self.namespace:
            raise click.UsageError("name the cluster: -n /raft/NAME, or set TAURAFT_NAMESPACE")
        return self.namespace

    def key(self) -> bytes | None:
        """32 raw bytes, or 64 hex digits, from ``--key-file``."""
        if self.key_file is None:
            return None
        try:
            with open(self.key_file, "rb") as file:
                data = file.read(4_096)
        except OSError as error:
            raise click.UsageError(f"cannot read the key file {self.key_file}: {error.strerror}") from error
        if len(data) == 32:
            return data
        try:
            key = bytes.fromhex(data.decode("ascii").strip())
        except ValueError:
            key = b""
        if len(key) != 32:
            raise click.UsageError(f"{self.key_file} holds neither 32 raw bytes nor 64 hex digits")
        return key

    @contextmanager
    def client(self) -> Iterator[tauraft.Client]:
        """A started client. One that reaches nobody in ``timeout`` raises ``NoLeader``."""
        import tauraft

        client = tauraft.Client(
            self.required_namespace(),
            self.addresses,
            data_dir=self.data_dir,
            encryption_key=self.key(),
            timeout=min(self.timeout, 60.0),
            label="tauraft cli",
        )
        client.start(timeout=self.timeout)
        try:
            yield client
        finally:
            client.close()

    def show(self, value: dict[str, Any], text: str) -> None:
        click.echo(json.dumps(value) if self.as_json else text)


def shared_options(function: Any) -> Any:
    """The options that come before a command and may also follow it; the later one wins."""
    for option in (
        click.option("--json", "as_json", is_flag=True, default=None, help="One JSON object on stdout."),
        click.option(
            "--timeout", type=click.FloatRange(0, min_open=True), default=None, help="Seconds; 10 by default."
        ),
        click.option("--key-file", default=None, help="File with the shared key: 32 bytes, or 64 hex digits."),
        click.option("--address", "addresses", multiple=True, help="Multiaddr of a node; may be repeated."),
        click.option("--data-dir", default=None, help="The node's data directory on this host."),
        click.option("-n", "--namespace", default=None, help="The cluster: /raft/NAME. [TAURAFT_NAMESPACE]"),
    ):
        function = option(function)
    return function


def targeted(function: Any) -> Any:
    """Give a command its ``Target``, from what stood before it and what stands after it."""
    from functools import wraps

    @shared_options
    @click.pass_context
    @wraps(function)
    def command(
        context: click.Context,
        /,
        *arguments: Any,
        namespace: str | None,
        data_dir: str | None,
        addresses: tuple[str, ...],
        key_file: str | None,
        timeout: float | None,
        as_json: bool | None,
        **options: Any,
    ) -> Any:
        before: dict[str, Any] = context.find_root().obj or {}
        target = Target(
            namespace=namespace or before.get("namespace"),
            data_dir=data_dir or before.get("data_dir"),
            addresses=addresses or before.get("addresses") or (),
            key_file=key_file or before.get("key_file"),
            timeout=timeout or before.get("timeout") or 10.0,
            patience=timeout or before.get("timeout"),
            as_json=bool(as_json if as_json is not None else before.get("as_json")),
        )
        context.find_root().meta["tauraft.as_json"] = target.as_json
        return function(target, *arguments, **options)

    return command


class LazyGroup(click.Group):
    """Ours by the table above, and those of installed plugins (``tauraft_cli``), which are asked only when they may be meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(self._of_plugins())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return self._of_plugins().get(cmd_name)
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        found: click.Command = getattr(importlib.import_module(module), name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in COMMANDS.items()])
        from tauraft.errors import TauraftError

        try:
            theirs = sorted(self._of_plugins().items())
        except TauraftError as error:  # help is for those who are in trouble
            formatter.write_paragraph()
            formatter.write_text(f"The commands of plugins are missing here: {error}")
            return
        if theirs:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, command.get_short_help_str(limit=80)) for name, command in theirs])

    def _of_plugins(self) -> dict[str, click.Command]:
        from tauraft.errors import InvalidOption
        from tauraft.plugin_manager import load_plugins

        theirs = click.Group()
        load_plugins().hooks.tauraft_cli(group=theirs)
        taken = sorted(COMMANDS.keys() & theirs.commands.keys())
        if taken:
            raise InvalidOption(
                f"a plugin brings the command {taken[0]!r} (tauraft_cli), which is tauraft's own: uninstall it, or have it "
                "renamed",
                option="plugins",
            )
        return dict(theirs.commands)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tauraft", message="tauraft %(version)s")
@click.option("-n", "--namespace", envvar="TAURAFT_NAMESPACE", default=None, help="The cluster: /raft/NAME.")
@click.option("--data-dir", envvar="TAURAFT_DATA_DIR", default=None, help="The node's data directory on this host.")
@click.option("--address", "addresses", multiple=True, help="Multiaddr of a node; may be repeated.")
@click.option("--key-file", default=None, help="File with the shared key: 32 bytes, or 64 hex digits.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=None, help="Seconds; 10 by default.")
@click.option("--json", "as_json", is_flag=True, default=None, help="One JSON object on stdout.")
@click.pass_context
def root(context: click.Context, /, **options: Any) -> None:
    """Coordination inside your own processes: a replicated cluster, locks, KV and more."""
    import os

    if not options["addresses"] and os.environ.get("TAURAFT_ADDRESSES"):
        options["addresses"] = tuple(os.environ["TAURAFT_ADDRESSES"].split(","))
    context.obj = options
    context.meta["tauraft.as_json"] = bool(options["as_json"])


def exit_code(error: Exception) -> int:
    """The code of API.md "Command line" for an error of tauraft."""
    from tauraft import errors

    match error:
        case errors.WaitTimeout():
            return 124
        case errors.WrongKey() | errors.DataDirectoryError() | errors.PluginMissing():
            return 4
        case errors.Unavailable() | errors.SplitBrain() | errors.Shutdown() | errors.LockLost():
            return 3
        case errors.InvalidArgument():
            return 2
        case _:
            return 1


def complain(code: str, message: str, outcome: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": {"code": code, "message": message, "outcome": outcome}}), err=True)
    else:
        click.echo(f"tauraft: {message}", err=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Ends the process with the documented exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    before_command = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in before_command
    try:
        code = root.main(arguments, prog_name="tauraft", standalone_mode=False)
    except click.exceptions.Abort:
        complain("interrupted", "interrupted", "unknown", as_json)
        sys.exit(130)
    except click.ClickException as error:
        complain("usage", error.format_message(), "not-applied", as_json)
        sys.exit(2)
    except Exception as error:
        from tauraft.errors import TauraftError

        if not isinstance(error, (TauraftError, TypeError, ValueError)):
            raise
        name = error.code if isinstance(error, TauraftError) else "invalid-argument"
        outcome = error.outcome if isinstance(error, TauraftError) else "not-applied"
        complain(name, str(error), outcome, as_json)
        sys.exit(exit_code(error) if isinstance(error, TauraftError) else 2)
    sys.exit(code if isinstance(code, int) else 0)
