"""Fencing: the message, and the handle whose writes depend on a hold."""
