"""The code that the supervisor runs, for its children: the same until it ends.

An upgrade, `git pull` or an uninstallation changes files under a running server. A child that
started from them would speak another version's protocol, or half of each. So the supervisor keeps
what it found at its start, packed in memory; children start from the installation as long as that
is the same, and from a copy of the old files as soon as it is not.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import logging
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from supervisor.bootstrap import PACKAGES
from supervisor.wire.listener import check_private, folders, make_private, remove_spare_folder

log = logging.getLogger("bulkhead.supervisor")

DISTRIBUTION = "mlx-bulkhead"
_PREFIX = "code-"

_IMPORT = re.compile(
    rf"^[ \t]*(?:from|import) ((?:{'|'.join(PACKAGES)})(?:\.\w+)*)".encode(), re.MULTILINE
)

_Stamp = tuple[int, int, int, int]
"""Of one file: inode, size, and when it and its entry changed. Whoever writes to a file changes the
last, whatever time it says that it is from."""


@dataclass(frozen=True, slots=True)
class Files:
    """Every module of ours in one folder, as it was when it was read: `name` is such as
    "worker/main.py"."""

    root: Path
    stamps: Mapping[str, _Stamp]
    digest: bytes
    """Of the names and what is in them."""
    packed: bytes
    """All of it, a zip archive."""
    hashes: Mapping[str, str]
    """SHA-256 of each as an installation's RECORD writes it."""
    damaged: tuple[str, ...]
    """Those that are missing or are not what was installed: by the installation's own record, or in
    a checkout, which has none, by what the others import. The three `__init__` modules are never
    run, so another distribution may have its own there."""


def read(root: Path) -> Files:
    """What is in `root` now. Blocks on some 200 files: 50 ms. Raises OSError."""
    recorded = _recorded(root)
    names = [name for name in recorded if (root / name).is_file()] if recorded else _found(root)
    stamps: dict[str, _Stamp] = {}
    hashes: dict[str, str] = {}
    imported = set[str]()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in sorted(names):
            path = root / name
            stamps[name] = _stamp(path)  # before its content: a change in between is seen later
            data = path.read_bytes()
            hashes[name] = _record_hash(data)
            imported.update(found.decode() for found in _IMPORT.findall(data))
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    if recorded:
        never_run = {f"{package}/__init__.py" for package in PACKAGES}
        others = {name for name, digest in recorded.items() if hashes.get(name) != digest}
        damaged = others - never_run
    else:
        paths = {name.replace(".", "/") for name in imported}
        damaged = {f"{path}.py" for path in paths if not (root / path).is_dir()} - hashes.keys()
    return Files(root, stamps, _digest(hashes), packed.getvalue(), hashes, tuple(sorted(damaged)))


class OwnCode:
    """Where children start from. `folder` is the run directory: the copy, if one is needed, is
    there, or where the sockets are when it can't be used. To be used by one thread."""

    def __init__(self, files: Files, folder: Path) -> None:
        self._files = files
        name = f"{_PREFIX}{files.digest.hex()[:12]}"
        self._places = [each / name for each in folders(folder)]
        self._copy = self._places[0]
        self._installed = files.stamps
        """Stamps under which the installation is known to hold the old content."""
        self._copied: Mapping[str, _Stamp] = {}
        self._told = False

    def home(self) -> Path:
        """The folder to start a child from. Blocks: 2 ms where nothing has changed, else on reading
        or writing 200 files. Raises OSError when neither place has the old code."""
        if self._is_installed():
            return self._files.root
        if not self._copied or not _unchanged(self._copy, self._copied):
            self._unpack()
        if not self._told:
            self._told = True
            log.warning(
                "Bulkhead's files in %s have changed since it was started. Until it is restarted "
                "it goes on with the old ones, from a copy in %s",
                self._files.root,
                self._copy,
            )
        return self._copy

    def is_same(self, home: Path) -> bool:
        """Whether a child that was started from there, and has imported its modules by now, runs
        the old code whole: files may have changed while it did. Blocks as `home`."""
        return home != self._files.root or self._is_installed()

    def _is_installed(self) -> bool:
        root = self._files.root
        if _unchanged(root, self._installed):
            return True
        try:
            now = {name: _stamp(root / name) for name in self._files.stamps}
            same = all(
                _record_hash((root / name).read_bytes()) == digest
                for name, digest in self._files.hashes.items()
            )
        except OSError:
            return False
        if same:  # touched, or written anew with what it had
            self._installed = now
        return same

    def _unpack(self) -> None:
        first: OSError | None = None
        for place in self._places:
            try:
                self._copied = self._write(place)
            except OSError as error:
                first = first or error
            else:
                self._copy = place
                return
        assert first is not None
        raise OSError(
            first.errno,
            "restart Bulkhead: its files have changed, and the old ones cannot be written to "
            f"{self._places[0]} ({first.strerror})",
        ) from first

    def _write(self, place: Path) -> Mapping[str, _Stamp]:
        make_private(place.parent)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o700)
        with zipfile.ZipFile(io.BytesIO(self._files.packed)) as archive:
            archive.extractall(place)
        return {name: _stamp(place / name) for name in self._files.stamps}


def discard_copies(folder: Path) -> None:
    """Remove the copies that this or an earlier supervisor has left for the run directory `folder`,
    as far as that is possible. Never raises."""
    for each in folders(folder):
        with contextlib.suppress(OSError):  # it is not there, not ours, or nobody may look into it
            check_private(each)
            for path in each.glob(f"{_PREFIX}*"):
                shutil.rmtree(path, ignore_errors=True)
    remove_spare_folder(folder)


def _found(root: Path) -> list[str]:
    paths = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    return [path.relative_to(root).as_posix() for path in paths]


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _unchanged(root: Path, stamps: Mapping[str, _Stamp]) -> bool:
    try:
        return all(_stamp(root / name) == stamp for name, stamp in stamps.items())
    except OSError:
        return False


def _digest(hashes: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).digest()


def _record_hash(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return f"sha256={digest.decode().rstrip('=')}"


def _recorded(root: Path) -> dict[str, str]:
    """The modules that the distribution in `root` has by its RECORD, and their hashes."""
    found = dict[str, str]()
    for each in metadata.distributions(name=DISTRIBUTION, path=[str(root)]):
        for name, digest, _ in csv.reader((each.read_text("RECORD") or "").splitlines()):
            if name.partition("/")[0] in PACKAGES and name.endswith(".py"):
                found[name] = digest
    return found
