"""Groups: messages and handles."""
