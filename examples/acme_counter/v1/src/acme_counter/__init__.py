"""A counter that a tauraft cluster keeps: ``AcmeCounter`` for threads, ``AsyncAcmeCounter`` for asyncio and trio."""

from acme_counter._blocking import AcmeCounter
from acme_counter.handle import AsyncAcmeCounter

__all__ = ["AsyncAcmeCounter", "AcmeCounter"]
