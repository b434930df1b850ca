"""Things done once: messages and handles."""
