"""Leases: the handle. What it sends is KV's, in whose state machine leases live."""
