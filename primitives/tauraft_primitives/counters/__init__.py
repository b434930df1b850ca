"""Counters and blocks of ids: what is sent, and what a caller holds."""
