"""Rate limits: messages and handles."""
