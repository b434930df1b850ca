"""Finds plugins, checks them, and keeps what they bring: state machines by name and version, messages by tag.

Found by entry point (group ``tauraft``; ``TAURAFT_PLUGIN_AUTOLOAD=0`` turns that off) or given: modules, objects with hooks,
or FSM classes.  A plugin that cannot be loaded is one ``PluginMissing`` or ``InvalidOption`` sentence that names it.

``Registry`` is what the apply engine works with: it has no order that depends on the process, so
what it says of itself (``supported``) is equal wherever the same packages are installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from hashlib import sha256
from importlib import metadata
from typing import Any, cast

import msgpack
import pluggy

from tauraft import hookspecs
from tauraft.codec import CodecError, ValueCodec, compile_codec, message_codec, unpack_bytes
from tauraft.errors import InvalidCommand, InvalidOption, PluginMissing
from tauraft.fsm import FSM, Message, answer_hint

ENTRY_POINT_GROUP = "tauraft"
APPLY_FORMAT = 2  # part of every digest: raised when the apply engine changes what entries mean


def load_plugins(given: Sequence[object] = (), *, autoload: bool | None = None) -> Registry:
    """All plugins of this process in one registry. Raises ``PluginMissing``, ``InvalidOption``."""
    manager = pluggy.PluginManager("tauraft")
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    if autoload is None:
        autoload = os.environ.get("TAURAFT_PLUGIN_AUTOLOAD", "1") != "0"
    if autoload:
        for point in sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda p: (p.name, p.value)):
            package = point.dist.name if point.dist is not None else point.value
            try:
                plugin = point.load()
            except Exception as error:
                raise PluginMissing(
                    f"the plugin {point.name!r} of {package} cannot be imported ({type(error).__name__}: {error}); "
                    f"repair or uninstall {package}, or set TAURAFT_PLUGIN_AUTOLOAD=0",
                    package=package,
                ) from error
            if isinstance(plugin, type) and issubclass(plugin, FSM):
                registry.add(plugin)
            else:
                _register(manager, plugin, point.name)
            registry.packages[point.value.partition(".")[0].partition(":")[0]] = package
    for plugin in given:
        if isinstance(plugin, type) and issubclass(plugin, FSM):
            registry.add(plugin)
        else:
            _register(manager, plugin, getattr(plugin, "__name__", type(plugin).__name__))
    for fsms in manager.hook.tauraft_fsms():
        for fsm in fsms:
            if not (isinstance(fsm, type) and issubclass(fsm, FSM)):
                raise InvalidOption(f"tauraft_fsms() returned {fsm!r}, which is no FSM class", option="plugins")
            registry.add(fsm)
    registry.hooks = manager.hook
    return registry


def _register(manager: pluggy.PluginManager, plugin: object, name: str) -> None:
    if manager.is_registered(plugin):
        return
    known = {hook for hook in vars(hookspecs) if hook.startswith("tauraft_")}
    offered = [hook for hook in dir(plugin) if hook.startswith("tauraft_") and callable(getattr(plugin, hook))]
    for hook in offered:
        if hook not in known:
            raise InvalidOption(
                f"the plugin {name} implements {hook}, which is no hook; there are {', '.join(sorted(known))}",
                option="plugins",
            )
    if not offered:
        raise InvalidOption(
            f"{name} is no plugin: it has no hook such as tauraft_fsms, and is no FSM class", option="plugins"
        )
    try:
        # Two objects of one class may be given: pluggy's own names tell them apart.
        manager.register(plugin, f"{name} {id(plugin):x}")
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        why = " ".join(str(error).split())
        raise InvalidOption(f"the plugin {name} does not fit: {why}", option="plugins") from error


class Registry:
    """State machines by (name, version), messages by (FSM, tag)."""

    def __init__(self, fsms: Iterable[type[FSM]] = ()) -> None:
        self._fsms: dict[tuple[str, int], type[FSM]] = {}
        self._messages: dict[tuple[str, str], tuple[type[Message[Any]], ValueCodec]] = {}
        self._digests: dict[tuple[str, int], bytes] = {}
        self.hooks: Any = None
        self.packages: dict[str, str] = {}  # what to install, by the top module that it brings
        for fsm in fsms:
            self.add(fsm)

    def add(self, fsm: type[FSM]) -> None:
        """Raises ``InvalidOption`` where another class has the name and version."""
        place = (fsm.fsm_name, fsm.version)
        known = self._fsms.setdefault(place, fsm)
        if known is not fsm:
            raise InvalidOption(
                f"{known.__module__} and {fsm.__module__} both bring {fsm.fsm_name} version {fsm.version}",
                option="plugins",
            )
        for kind in fsm.messages():
            self.add_message(kind)
        for read in fsm.reads:
            if not any(name == read.fsm_name for name, _ in self._fsms):
                self.add(read)
        self._digests[place] = _decides_results(fsm)

    def add_message(self, kind: type[Message[Any]]) -> None:
        # Of several versions the one added last decodes: fields are only ever added, with defaults.
        self._messages[kind.fsm, kind.tag] = (kind, message_codec(cast(Any, kind)))

    def knows(self, message: Message[Any]) -> bool:
        """This very class: a message of an object link was never decoded here."""
        known = self._messages.get((message.fsm, message.tag))
        return known is not None and known[0] is type(message)

    # State machines.

    def supported(self) -> tuple[tuple[str, int, bytes], ...]:
        """(name, version, digest of what decides its results), sorted."""
        return tuple(sorted((name, version, self._digests[name, version]) for name, version in self._fsms))

    def can_run(self, name: str, version: int, digest: bytes) -> bool:
        return self._digests.get((name, version)) == digest

    def package_of(self, name: str, version: int) -> str:
        """What to install to have it: a distribution, or where that is not known the module."""
        module = self._fsms[name, version].__module__.partition(".")[0]
        return self.packages.get(module, module)

    def make(self, name: str, version: int) -> FSM:
        return self._fsms[name, version]()

    # Messages.

    def encode(self, message: Message[Any]) -> bytes:
        """Raises ``TypeError`` where a field has another type than declared."""
        return encode_message(message)

    def decode(self, payload: bytes) -> Message[Any]:
        """Raises ``InvalidCommand``."""
        try:
            fsm, tag, fields = unpack_bytes(payload)
            _, codec = self._messages[fsm, tag]
        except KeyError:
            raise InvalidCommand(
                f"{fsm}/{tag} is no command or query that this process knows; is its plugin installed there?"
            ) from None
        except (CodecError, ValueError, TypeError) as error:
            raise InvalidCommand(f"a command that does not decode: {error}") from error
        try:
            message: Message[Any] = codec.unpack(fields)
        except (CodecError, ValueError, TypeError) as error:
            raise InvalidCommand(f"{fsm}/{tag} does not decode: {error}") from error
        return message

    def encode_answer(self, message: Message[Any], value: Any) -> bytes:
        """Raises ``TypeError`` where the handler's answer is not of the message's answer type."""
        return answer_codec(type(message)).encode(value)


_ANSWERS: dict[type[Message[Any]], ValueCodec] = {}


def answer_codec(kind: type[Message[Any]]) -> ValueCodec:
    """How the answers to a message are written."""
    codec = _ANSWERS.get(kind)
    if codec is None:
        codec = _ANSWERS[kind] = compile_codec(answer_hint(kind))
    return codec


def encode_message(message: Message[Any]) -> bytes:
    """``[fsm, tag, {field: value}]``. Raises ``TypeError`` where a field has another type than declared."""
    packed: bytes = msgpack.packb([message.fsm, message.tag, message_codec(cast(Any, type(message))).pack(message)])
    return packed


def _decides_results(fsm: type[FSM]) -> bytes:
    """A digest of what must be equal for two replicas to apply alike (SAFETY 13): shapes, not source text."""
    story = [APPLY_FORMAT, fsm.fsm_name, fsm.version]
    story += [f"{name}: {key} -> {row}" for name, (key, row) in fsm.table_hints.items()]
    story += sorted(f"{kind.tag}" for kind in fsm.messages())
    story += [f"teardown {fsm.teardown}"]
    story += [str(item) for item in getattr(fsm, "decided_by", ())]
    return sha256(repr(story).encode()).digest()[:16]
