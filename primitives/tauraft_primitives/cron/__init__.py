"""Jobs on a calendar: one run a tick in all the cluster, and a ledger of what became of each."""
