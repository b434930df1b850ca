"""What a caller holds, and what it sends: messages and handles of the bundled primitives."""
