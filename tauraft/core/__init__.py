"""Sans-I/O Raft: no clocks, no logging, no async, no imports outside this package.

``Raft.tick/step/propose`` take what happened; ``Raft.ready`` says what must be done about it.
"""
