"""A virtual environment of its own, in which packages of strangers are installed beside tauraft, without a network.

What tauraft itself needs comes from the environment of these tests, and tauraft from this tree; what is installed goes only here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SOURCES = (ROOT, ROOT / "plugins", ROOT / "primitives")


class ScratchEnvironment:
    def __init__(self, directory: Path) -> None:
        venv.create(directory, with_pip=False, symlinks=True)
        self.python = directory / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.site = directory / "lib" / version / "site-packages"
        # Behind what is installed here, so that it is found first; the tree before an editable installation of another.
        beside = [*map(str, SOURCES), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        (self.site / "beside.pth").write_text("\n".join(dict.fromkeys(beside)) + "\n", encoding="utf-8")
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("TAURAFT_", "PYTEST_", "PYTHON"))
        }

    def run(
        self, *arguments: str | Path, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Its Python with ``arguments``."""
        return subprocess.run(
            [self.python, *arguments],
            cwd=cwd,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )

    def install(self, package: Path) -> None:
        pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-e"]
        done = self.run("-W", "ignore", *pip, str(package), PIP_DISABLE_PIP_VERSION_CHECK="1")
        assert done.returncode == 0, done.stdout + done.stderr
