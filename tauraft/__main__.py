"""``python -m tauraft`` is ``tauraft``."""

from __future__ import annotations

from tauraft.cli.main import main

if __name__ == "__main__":
    main()
