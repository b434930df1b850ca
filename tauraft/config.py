"""Options: argument > ``TAURAFT_<OPTION>`` > ``tauraft.toml`` in the working directory > preset.

``cluster_options``, ``node_options`` and ``client_options`` check everything a constructor is given, and everything the environment and the file
say, before anything is started; what is wrong is an ``InvalidOption`` (or ``InvalidNamespace``) that names the
option and where it came from.  Both are pure but for reading that file and the environment.

In the environment lists are separated by commas, keys are 64 hex digits, booleans ``0`` or ``1``; unknown ``TAURAFT_*`` variables and
unknown entries of the file are refused, as a mistyped option must not be silently nothing.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from tauraft.errors import InvalidNamespace, InvalidOption

MAX_NAMESPACE_BYTES = 255
# Not options of a constructor: what the command line, plugins and defaults read.
OTHER_VARIABLES = frozenset({"TAURAFT_STATE_DIR", "TAURAFT_NAMESPACE", "TAURAFT_PLUGIN_AUTOLOAD", "TAURAFT_TOKEN"})


@dataclass(frozen=True, slots=True)
class Preset:
    """Raft's pace, and how long a new node looks for others. An election time-out is drawn from [election_s, 2 x election_s)."""

    heartbeat_s: float
    election_s: float
    bootstrap_timeout_s: float


PRESETS: Mapping[str, Preset] = {
    "local": Preset(0.15, 1.0, 2.0),
    "regional": Preset(0.15, 1.5, 10.0),
    "global": Preset(0.5, 5.0, 30.0),
}


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """What a ``Cluster`` was asked for, checked."""

    namespace: str
    data_dir: str | None = None
    preset: Literal["local", "regional", "global"] = "regional"
    storage: str = "segment"
    listen: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    discovery: tuple[str, ...] = ("local",)
    expect: int | None = None
    max_voters: int = 5
    bootstrap_timeout: float | None = None
    bootstrap_threshold: float = 0.8
    force_bootstrap: bool = False
    encryption_key: tuple[bytes, ...] = ()
    allow: tuple[str, ...] = ()
    join_token: str | None = None
    insecure: bool = False
    plugins: tuple[object, ...] = ()
    session_ttl: float = 10.0
    timeout: float = 10.0
    lease_reads: bool = False
    snapshot_dir: str | None = None
    history_bytes: int = 256 << 20
    on_close: Literal["stay", "leave"] = "stay"
    label: str | None = None

    @property
    def timing(self) -> Preset:
        return PRESETS[self.preset]

    def node(self) -> NodeOptions:
        """Those of the node of its own that a ``Cluster`` has."""
        shared = {field.name: getattr(self, field.name) for field in fields(NodeOptions)}
        return NodeOptions(**{**shared, "data_dir": self.data_dir or ""})

    def __repr__(self) -> str:
        shown = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "encryption_key"]
        return f"ClusterOptions({', '.join(shown)}, encryption_key={'set' if self.encryption_key else 'none'})"


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a ``Node`` was asked for, checked: all that its namespaces share. ``data_dir`` "": the namespace's default."""

    data_dir: str = ""
    preset: Literal["local", "regional", "global"] = "regional"
    storage: str = "segment"
    listen: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    discovery: tuple[str, ...] = ("local",)
    encryption_key: tuple[bytes, ...] = ()
    allow: tuple[str, ...] = ()
    insecure: bool = False
    plugins: tuple[object, ...] = ()

    def __repr__(self) -> str:
        return f"NodeOptions(data_dir={self.data_dir!r}, listen={self.listen!r}, peers={self.peers!r})"


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """What a ``Client`` was asked for, checked."""

    namespace: str
    addresses: tuple[str, ...] = ()
    data_dir: str | None = None
    encryption_key: tuple[bytes, ...] = ()
    insecure: bool = False
    session_ttl: float = 10.0
    timeout: float = 10.0
    label: str | None = None

    def __repr__(self) -> str:
        return f"ClientOptions(namespace={self.namespace!r}, addresses={self.addresses!r})"


def check_namespace(namespace: object) -> str:
    """``/raft/`` and names, letters of any script, digits and ``-_.``. Raises ``TypeError``, ``InvalidNamespace``."""
    if type(namespace) is not str:
        raise TypeError(f"a namespace is a str like '/raft/name', not {type(namespace).__name__}")
    wrong = ""
    parts = namespace.split("/")
    if not namespace.startswith("/raft/"):
        wrong = "it must start with /raft/"
    elif any(not part for part in parts[1:]):
        wrong = "it has an empty part"
    elif any(part in (".", "..") for part in parts):
        wrong = "a part cannot be . or .."
    elif parts[-1] == "transport":
        wrong = "its last part cannot be 'transport', which is a protocol of its own"
    elif len(namespace.encode("utf-8", "replace")) > MAX_NAMESPACE_BYTES:
        wrong = f"it is longer than {MAX_NAMESPACE_BYTES} bytes"
    elif not all(character.isalnum() or character in "-_." for part in parts[1:] for character in part):
        wrong = "only letters, digits, '-', '_' and '.' may stand between the slashes"
    if wrong:
        raise InvalidNamespace(f"{namespace!r} is no namespace: {wrong}; name it like /raft/my-app", option="namespace")
    return namespace


def cluster_options(namespace: object, given: Mapping[str, Any]) -> ClusterOptions:
    """Raises ``TypeError``, ``InvalidNamespace``, ``InvalidOption``."""
    checked = _gather(ClusterOptions, given)
    options = ClusterOptions(check_namespace(namespace), **checked)
    if options.expect is not None and options.force_bootstrap:
        raise InvalidOption("expect= and force_bootstrap= exclude each other", option="force_bootstrap")
    _check_exposure(options)
    return options


def node_options(given: Mapping[str, Any]) -> NodeOptions:
    """Raises ``TypeError``, ``InvalidOption``."""
    options = NodeOptions(**_gather(NodeOptions, given))
    if not options.data_dir:
        raise InvalidOption("a node needs a data_dir", option="data_dir")
    _check_exposure(options)
    return options


def shared_options(node: NodeOptions) -> dict[str, Any]:
    """As a cluster on ``node`` is given them."""
    shared = {field.name: getattr(node, field.name) for field in fields(NodeOptions)}
    return shared | {"encryption_key": node.encryption_key or None}


def _check_exposure(options: ClusterOptions | NodeOptions) -> None:
    """Open without credentials only on loopback (SAFETY 33)."""
    if not options.insecure and not options.encryption_key and not options.allow:
        for address in options.listen:
            if not _is_loopback(address):
                raise InvalidOption(
                    f"listen={address!r} can be reached from other machines, and anyone there could join: set "
                    "encryption_key=, allow=, or insecure=True if that is meant",
                    option="listen",
                )


def client_options(namespace: object, given: Mapping[str, Any]) -> ClientOptions:
    """Raises ``TypeError``, ``InvalidNamespace``, ``InvalidOption``."""
    checked = _gather(ClientOptions, given)
    if given.get("data_dir") is not None and "addresses" not in given:
        checked.pop("addresses", None)  # an argument said which node is meant
    return ClientOptions(check_namespace(namespace), **checked)


def _gather(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)} - {"namespace"}
    every = {field.name for field in fields(ClusterOptions)} | {field.name for field in fields(ClientOptions)}
    found: dict[str, tuple[str, Any]] = {}
    for name, value in _of_file().items():
        if name not in every:
            raise InvalidOption(f"tauraft.toml: there is no option {name!r}", option=name)
        if name in names:
            found[name] = (f"tauraft.toml: {name}", value)
    for variable, text in sorted(os.environ.items()):
        if not variable.startswith("TAURAFT_") or variable in OTHER_VARIABLES:
            continue
        name = variable.removeprefix("TAURAFT_").lower()
        if name not in every or name == "plugins":
            raise InvalidOption(f"{variable} is set in the environment, and is no option of tauraft", option=name)
        if name in names:
            found[name] = (variable, _Text(text))
    for name, value in given.items():
        found[name] = (name, value)
    checked = {name: _CHECKS[name](where, value) for name, (where, value) in found.items()}
    if checked.get("encryption_key", ()) is None:
        checked["encryption_key"] = ()
    return checked


class _Text(str):
    """From the environment: still to be read as the option's type."""


def _of_file() -> dict[str, Any]:
    try:
        with open("tauraft.toml", "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidOption(f"tauraft.toml cannot be read: {error.strerror}", option="tauraft.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidOption(f"tauraft.toml is not valid TOML: {error}", option="tauraft.toml") from error


def _refuse(where: str, what: str) -> InvalidOption:
    return InvalidOption(f"{where}: {what}", option=where.rpartition(" ")[2].removeprefix("TAURAFT_").lower())


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{where} is a str, not {type(value).__name__}")
    return str(value)


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda where, value: None if value is None or value == "" else check(where, value)


def _label(where: str, value: Any) -> str:
    text = _text(where, value)
    if len(text.encode()) > 256:
        raise _refuse(where, "at most 256 bytes")
    return text


def _path(where: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{where} is a path, not {type(value).__name__}")
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise _refuse(where, "not a usable path")
    return text


def _boolean(where: str, value: Any) -> bool:
    if isinstance(value, _Text):
        if value not in ("0", "1"):
            raise _refuse(where, f"0 or 1, not {str(value)!r}")
        return value == "1"
    if type(value) is not bool:
        raise TypeError(f"{where} is a bool, not {type(value).__name__}")
    return value


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def check(where: str, value: Any) -> int:
        if isinstance(value, _Text):
            try:
                value = int(value)
            except ValueError:
                raise _refuse(where, f"a whole number, not {str(value)!r}") from None
        if type(value) is not int:
            raise TypeError(f"{where} is an int, not {type(value).__name__}")
        if not least <= value <= most:
            raise _refuse(where, f"{value} is not between {least} and {most}")
        return value

    return check


def _number(least: float, most: float, unit: str = "seconds") -> Callable[[str, Any], float]:
    def check(where: str, value: Any) -> float:
        if isinstance(value, _Text):
            try:
                value = float(value)
            except ValueError:
                raise _refuse(where, f"a number of {unit}, not {str(value)!r}") from None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{where} is a number of {unit}, not {type(value).__name__}")
        if not least <= value <= most:
            raise _refuse(where, f"{value} is not between {least:g} and {most:g} {unit}")
        return float(value)

    return check


def _choice(*allowed: str) -> Callable[[str, Any], str]:
    def check(where: str, value: Any) -> str:
        text = _text(where, value)
        if text not in allowed:
            raise _refuse(where, f"{text!r} is none of {', '.join(allowed)}")
        return text

    return check


def _texts(where: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, _Text):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{where} is a list of str, not {type(value).__name__}")
    return tuple(_text(where, part) for part in value)


def _multiaddrs(where: str, value: Any) -> tuple[str, ...]:
    found = _texts(where, value)
    for address in found:
        parts = address.split("/")
        is_sound = (
            len(parts) in (5, 7)
            and parts[0] == ""
            and parts[1] in ("ip4", "ip6", "dns", "dns4", "dns6")
            and parts[3] == "tcp"
            and parts[4].isdigit()
            and int(parts[4]) < 65536
            and (len(parts) == 5 or parts[5] == "p2p")
        )
        if not is_sound:
            raise _refuse(where, f"{address!r} is no multiaddr like /ip4/10.0.0.5/tcp/4001 (and /p2p/ID)")
    return found


def _discoverers(where: str, value: Any) -> tuple[str, ...]:
    found = _texts(where, value)
    for name in found:
        if name != "local" and not _is_a_plugins(name):
            raise _refuse(
                where,
                f"there is no discoverer {name!r}; there is 'local', peers= for addresses, and what plugins bring under names "
                "with a dot",
            )
    return found


def _storage(where: str, value: Any) -> str:
    text = _text(where, value)
    if text not in ("segment", "duckdb", "memory") and not _is_a_plugins(text):
        raise _refuse(where, f"{text!r} is none of segment, duckdb, memory, nor a plugin's name with a dot")
    return text


def _is_a_plugins(name: str) -> bool:
    """``acme.dns``: what plugins bring is named as their state machines are. Whether one does is found at the start."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


def _keys(where: str, value: Any) -> tuple[bytes, ...]:
    if isinstance(value, _Text):
        try:
            value = [bytes.fromhex(part) for part in value.split(",")]
        except ValueError:
            raise _refuse(where, "a key is 64 hex digits") from None
    keys = (value,) if isinstance(value, bytes) else value
    if isinstance(keys, str) or not isinstance(keys, Sequence) or not all(isinstance(key, bytes) for key in keys):
        raise TypeError(f"{where} is 32 bytes, or a list of such keys")
    if not keys or any(len(key) != 32 for key in keys):
        raise _refuse(where, "a key is exactly 32 bytes")
    return tuple(keys)


def _plugins(where: str, value: Any) -> tuple[object, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{where} is a list of modules, objects or FSM classes, not {type(value).__name__}")
    return tuple(value)


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "data_dir": _optional(_path),
    "preset": _choice(*PRESETS),
    "storage": _storage,
    "listen": _multiaddrs,
    "peers": _multiaddrs,
    "addresses": _multiaddrs,
    "discovery": _discoverers,
    "expect": _optional(_whole(1, 99)),
    "max_voters": _whole(1, 9),
    "bootstrap_timeout": _optional(_number(0, 3_600)),
    "bootstrap_threshold": _number(0.01, 1, "the window"),
    "force_bootstrap": _boolean,
    "encryption_key": _optional(_keys),
    "allow": _texts,
    "join_token": _optional(_text),
    "insecure": _boolean,
    "plugins": _plugins,
    "session_ttl": _number(1, 3_600),
    "timeout": _number(0.001, 60),
    "lease_reads": _boolean,
    "snapshot_dir": _optional(_path),
    "history_bytes": _whole(0, 1 << 50),
    "on_close": _choice("stay", "leave"),
    "label": _optional(_label),
}


def _is_loopback(address: str) -> bool:
    parts = address.split("/")
    return (parts[1] == "ip4" and parts[2].startswith("127.")) or (parts[1] == "ip6" and parts[2] == "::1")
