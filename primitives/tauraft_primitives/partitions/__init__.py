"""Partitions of work: messages and handles."""
