"""Locks for readers and writers: messages and handle."""
