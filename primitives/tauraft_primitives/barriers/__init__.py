"""Barriers: messages and handles."""
