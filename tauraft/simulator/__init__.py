"""One process, one seed, one run: the real node on a memory network and memory disks, under faults.

``world.py`` builds it, ``faults.py`` hurts it, ``workload.py`` uses it, ``checkers/`` judge what happened, one property a file.
"""
