"""The rivals' own Python environment: made once for a list of requirements, and kept outside of the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"


def python() -> Path:
    """The interpreter of the environment, which is made where it is not there yet.

    It lies in `SHARDFLOW_RIVALS`, else in the user's cache folder. Raises CalledProcessError where pip fails.
    """
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = _cache() / f"rivals-{key}"
    found = folder / "bin" / "python"
    if found.exists():
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        print(f"installing the rivals into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(making)], check=True)
        pip = [str(making / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True, stdout=sys.stderr)
        try:
            making.rename(folder)  # complete, or not there
        except OSError:
            if not found.exists():  # nobody else was faster
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return found


def _cache() -> Path:
    given = os.environ.get("SHARDFLOW_RIVALS")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardflow"
