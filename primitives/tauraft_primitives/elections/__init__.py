"""Elections: messages and handles."""
