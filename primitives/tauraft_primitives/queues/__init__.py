"""Queues: what is sent, and what a caller holds."""
