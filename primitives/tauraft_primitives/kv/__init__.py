"""Keys and values: messages and handle."""
