"""Semaphores: messages and handle."""
