"""The command line: `tauraft ...`. Each command's module, and what it needs, is imported only when it runs."""
