"""``encryption_key``: a shared key on top of what libp2p proves, for transport and commands alike (SAFETY 36).

Before anything else travels on a stream its ends agree on keys.  The opener is the *initiator*:

    initiator -> responder   mode, nonce
    responder -> initiator   mode, nonce, one tag for each key that it holds
    initiator -> responder   which of these it holds too, and its own tag       (only when a key is in use)

A tag is an HMAC under a key derived from the shared key, over everything said so far, both peer ids, protocol and
namespace: whoever makes a right tag holds the key, so a wrong key is found, and named on both sides, before any data.
Of several common keys the initiator's first is taken, so that a keyring can be walked through a cluster.  A side with
a key never talks to one without (no downgrade), and says so.

Then each direction has its own AES-256-GCM key, from HKDF-SHA256 over (shared key, both nonces, direction, both peer
ids, protocol, namespace).  A record's nonce is its number, which its additional data repeats with the direction bound
in the key: a record that is replayed, reflected, reordered, cut off or changed does not open.  After ``rekey_after``
records both ends derive the next key from the last one (AES-GCM must not seal more than 2^32 under one key).

Pure: bytes in, bytes out; ``nonce`` is given.  Not here: sending, and what is inside a record.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tauraft.errors import WrongKey
from tauraft.transport.frames import WRITE_BYTES

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 32
TAG_BYTES: Final = 32
MAX_KEYS: Final = 16
REKEY_AFTER: Final = 1 << 31
RECORD_HEADER_BYTES: Final = 4
MAX_RECORD_BYTES: Final = WRITE_BYTES + 4096
_SEAL_BYTES: Final = 16
_PLAIN: Final = 0
_SEALED: Final = 1


class BrokenRecord(Exception):
    """A record was changed, replayed, left out or put in another's place: nothing after it can be trusted."""


class KeyRing:
    """Shared keys of 32 raw bytes: the first seals, all open. Raises ``ValueError`` for anything else."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not 1 <= len(keys) <= MAX_KEYS:
            raise ValueError(f"a keyring holds 1 to {MAX_KEYS} keys, not {len(keys)}")
        for key in keys:
            if not isinstance(key, bytes) or len(key) != KEY_BYTES:
                raise ValueError(f"an encryption key is {KEY_BYTES} raw bytes")
        self.keys = tuple(keys)

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self.keys)}>"


@dataclass(frozen=True, slots=True)
class StreamContext:
    """What keys are bound to: a record of one stream opens on no other."""

    protocol: str
    namespace: str
    initiator: str
    responder: str

    def encode(self) -> bytes:
        return b"".join(
            len(part).to_bytes(4, "big") + part
            for part in (text.encode() for text in (self.protocol, self.namespace, self.initiator, self.responder))
        )


@dataclass(frozen=True, slots=True, repr=False)
class DirectionKeys:
    """Both empty where no shared key is in use."""

    send: bytes = b""
    receive: bytes = b""


class Initiator:
    """The side that opened the stream: ``hello()``, then ``confirm(answer)``."""

    def __init__(self, ring: KeyRing | None, context: StreamContext, nonce: bytes) -> None:
        self._ring = ring
        self._context = context
        self._hello = bytes([_PLAIN if ring is None else _SEALED]) + nonce

    def hello(self) -> bytes:
        return self._hello

    def refuse(self) -> bytes:
        """What to send instead of a confirmation when ``confirm`` raised ``WrongKey``."""
        return b""

    def confirm(self, answer: bytes) -> tuple[bytes, DirectionKeys]:
        """The third message (empty without a key) and the keys. Raises ``WrongKey``."""
        peer = self._context.responder
        mode, nonce, tags = _parse_answer(answer)
        if mode != self._hello[0]:
            raise _one_side_only(peer, peer_has_key=mode == _SEALED)
        if self._ring is None:
            return b"", DirectionKeys()
        transcript = self._context.encode() + self._hello + answer[: 1 + NONCE_BYTES]
        for key in self._ring.keys:
            ours = _tag(key, b"responder", transcript)
            for number, theirs in enumerate(tags):
                if hmac.compare_digest(ours, theirs):
                    proof = _tag(key, b"initiator", transcript + b"".join(tags))
                    keys = _derive(key, self._hello[1:], nonce, self._context)
                    return bytes([number]) + proof, keys
        raise _no_common_key(peer)


class Responder:
    """The side that accepted: ``answer(hello)``, then ``finish(confirmation)``."""

    def __init__(self, ring: KeyRing | None, context: StreamContext, nonce: bytes) -> None:
        self._ring = ring
        self._context = context
        self._nonce = nonce
        self._transcript = b""
        self._hello = b""
        self._tags = b""

    def answer(self, hello: bytes) -> bytes:
        if len(hello) != 1 + NONCE_BYTES:
            raise BrokenRecord("the greeting is malformed")
        self._hello = hello
        head = bytes([_PLAIN if self._ring is None else _SEALED]) + self._nonce
        self._transcript = self._context.encode() + hello + head
        keys = () if self._ring is None else self._ring.keys
        self._tags = b"".join(_tag(key, b"responder", self._transcript) for key in keys)
        return head + self._tags

    def check_mode(self) -> None:
        """After the answer was sent. Raises ``WrongKey`` when only one side has a key."""
        if self._hello[0] != (_PLAIN if self._ring is None else _SEALED):
            raise _one_side_only(self._context.initiator, peer_has_key=self._hello[0] == _SEALED)

    def finish(self, confirmation: bytes) -> DirectionKeys:
        """Raises ``WrongKey``."""
        if self._ring is None:
            return DirectionKeys()
        peer = self._context.initiator
        if len(confirmation) != 1 + TAG_BYTES or confirmation[0] >= len(self._ring.keys):
            raise _no_common_key(peer)
        key = self._ring.keys[confirmation[0]]
        if not hmac.compare_digest(confirmation[1:], _tag(key, b"initiator", self._transcript + self._tags)):
            raise _no_common_key(peer)
        theirs = _derive(key, self._hello[1:], self._nonce, self._context)
        return DirectionKeys(send=theirs.receive, receive=theirs.send)


class RecordSealer:
    """One direction's outgoing records, in order."""

    def __init__(self, key: bytes, rekey_after: int = REKEY_AFTER) -> None:
        self._key = key
        self._cipher = AESGCM(key)
        self._number = 0
        self._rekey_after = rekey_after

    def seal(self, plaintext: bytes) -> bytes:
        """Header and record. At most ``WRITE_BYTES`` a record."""
        if self._number == self._rekey_after:
            self._key, self._number = _next_key(self._key), 0
            self._cipher = AESGCM(self._key)
        number = self._number.to_bytes(12, "big")
        self._number += 1
        sealed = self._cipher.encrypt(number, plaintext, number)
        return len(sealed).to_bytes(RECORD_HEADER_BYTES, "big") + sealed


class RecordOpener:
    """One direction's incoming records: any pieces of bytes in, the plaintext of whole records out."""

    def __init__(self, key: bytes, rekey_after: int = REKEY_AFTER) -> None:
        self._key = key
        self._cipher = AESGCM(key)
        self._number = 0
        self._rekey_after = rekey_after
        self._rest = b""

    @property
    def is_between_records(self) -> bool:
        return not self._rest

    def feed(self, data: bytes) -> bytes:
        """Raises ``BrokenRecord``."""
        if self._rest:
            data = self._rest + data
        position, size = 0, len(data)
        opened: list[bytes] = []
        while size - position >= RECORD_HEADER_BYTES:
            length = int.from_bytes(data[position : position + RECORD_HEADER_BYTES], "big")
            if not _SEAL_BYTES <= length <= MAX_RECORD_BYTES:
                raise BrokenRecord(f"a record claims {length} bytes")
            end = position + RECORD_HEADER_BYTES + length
            if end > size:
                break
            opened.append(self._open(data[position + RECORD_HEADER_BYTES : end]))
            position = end
        self._rest = data[position:] if position else data
        return opened[0] if len(opened) == 1 else b"".join(opened)

    def _open(self, record: bytes) -> bytes:
        if self._number == self._rekey_after:
            self._key, self._number = _next_key(self._key), 0
            self._cipher = AESGCM(self._key)
        number = self._number.to_bytes(12, "big")
        try:
            plaintext = self._cipher.decrypt(number, record, number)
        except InvalidTag:
            raise BrokenRecord("a record does not open: it was changed, replayed or lost its place") from None
        self._number += 1
        return plaintext


def mix(lane_key: bytes, shared: bytes) -> bytes:
    """A lane's key depends on the Noise session and, where one is set, on the shared key."""
    return _hkdf(lane_key + shared, b"", b"tauraft lane key 1")


def _parse_answer(answer: bytes) -> tuple[int, bytes, list[bytes]]:
    tags = answer[1 + NONCE_BYTES :]
    if len(answer) < 1 + NONCE_BYTES or len(tags) % TAG_BYTES or len(tags) > MAX_KEYS * TAG_BYTES:
        raise BrokenRecord("the answer to the greeting is malformed")
    return answer[0], answer[1 : 1 + NONCE_BYTES], [tags[at : at + TAG_BYTES] for at in range(0, len(tags), TAG_BYTES)]


def _derive(key: bytes, initiator_nonce: bytes, responder_nonce: bytes, context: StreamContext) -> DirectionKeys:
    salt, bound = initiator_nonce + responder_nonce, context.encode()
    return DirectionKeys(
        send=_hkdf(key, salt, b"tauraft initiator to responder 1" + bound),
        receive=_hkdf(key, salt, b"tauraft responder to initiator 1" + bound),
    )


def _tag(key: bytes, role: bytes, transcript: bytes) -> bytes:
    return hmac.new(_hkdf(key, b"", b"tauraft confirm 1 " + role), transcript, hashlib.sha256).digest()


def _next_key(key: bytes) -> bytes:
    return _hkdf(key, b"", b"tauraft next key 1")


def _hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(key)


def _no_common_key(peer: str) -> WrongKey:
    return WrongKey(
        f"{peer} and this node have no encryption key in common; nothing was exchanged: "
        "give both the same encryption_key"
    )


def _one_side_only(peer: str, *, peer_has_key: bool) -> WrongKey:
    with_key, without = (peer, "this node") if peer_has_key else ("this node", peer)
    return WrongKey(
        f"{with_key} has an encryption key and {without} has none; nothing was exchanged: "
        "give both the same encryption_key"
    )
