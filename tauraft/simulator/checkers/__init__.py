"""What must be true of every run. Each file checks one property over a history or over the replicas' states."""
