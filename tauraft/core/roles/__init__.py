"""What each role does with a tick and a message. One object lives per spell in the role, made by ``Raft``."""
