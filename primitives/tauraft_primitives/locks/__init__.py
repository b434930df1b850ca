"""Locks: messages and handles."""
