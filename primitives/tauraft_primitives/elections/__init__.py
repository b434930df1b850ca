"""Elections: who leads, by name. ``handle`` for callers, ``messages`` for the log."""
