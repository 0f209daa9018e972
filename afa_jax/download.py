"""Fetches published files into the cache: resumed, checked, and in place only when whole."""

import errno
import hashlib
import os
import re
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from afa_jax.errors import UserError
from afa_jax.files import cache_folder, locked, user_path

MIRROR = "AFA_JAX_MIRROR"
_ATTEMPTS, _TIMEOUT, _CHUNK = 3, 60, 1 << 20


class _BrokenOffError(Exception):
    """The connection ended before the file did."""


def fetch(url: str, folder: str = "weights") -> Path:
    """The file of `url`, from the cache or over the network.

    `$AFA_JAX_MIRROR` names another place for files of the same names: a folder, or the beginning of a URL. A file
    placed in the cache by hand is taken after the same check.

    Args:
      url: the file is checked against the digest in `…#sha256=<digest>` or else against the one in the file's name,
        `net-<first digits>.pth`; that there is neither is said.
      folder: of the cache, for files of its kind.

    Raises:
      UserError: no network, the server refuses, the file is not the one that was promised, or the disk is full; nothing
        half-written is left under the file's name.
    """
    url, _, digest = url.partition("#sha256=")
    name = url.rsplit("/", 1)[-1]
    in_name = re.search(r"-([0-9a-f]{8,64})\.", name)
    digest = digest or (in_name[1] if in_name else "")
    place = cache_folder() / folder
    path = place / name
    mirror = os.environ.get(MIRROR, "")
    try:
        with locked(place / f".{name}.lock", wait=True):
            if path.is_file():
                _check(path, name, digest)
            elif mirror and "://" not in mirror:
                path = user_path(mirror) / name
                if not path.is_file():
                    raise UserError(f"The mirror {mirror} ({MIRROR}) has no file {name}.")
                _check(path, name, digest)
            else:
                _fetch_into(f"{mirror.rstrip('/')}/{name}" if mirror else url, path, digest)
            return path
    except OSError as error:
        raise UserError(
            f"The cache {place} cannot be written ({error.strerror or error}): move it with AFA_JAX_CACHE."
        ) from error


def _fetch_into(url: str, path: Path, digest: str) -> None:
    partial = path.with_name(f"{path.name}.part")
    where = f"without a network, place it in {path.parent} by hand or name a mirror with {MIRROR}"
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _receive(url, partial, checked=bool(digest))
                break
            except _BrokenOffError as error:
                if attempt == _ATTEMPTS:
                    raise UserError(f"{url} broke off {error}; the same command goes on from there.") from error
    except urllib.error.HTTPError as error:
        raise UserError(f"{url} cannot be fetched, the server answers {error.code} {error.reason}; {where}.") from error
    except urllib.error.URLError as error:
        raise UserError(f"{url} cannot be fetched ({error.reason}); {where}.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            partial.unlink(missing_ok=True)
            raise UserError(
                f"The disk is full: make room in {path.parent} or move the cache with AFA_JAX_CACHE."
            ) from error
        raise UserError(f"{url} cannot be fetched ({error.strerror or error}); {where}.") from error
    except (HTTPException, ValueError) as error:  # no address, or no server of this kind
        raise UserError(f"{url} cannot be fetched ({type(error).__name__}: {error}); {where}.") from error
    try:
        _check(partial, path.name, digest, then="it has been removed")
    except UserError:
        partial.unlink()
        raise
    if not digest:
        print(f"{path.name}: its publisher gives no checksum, so it was not checked.", file=sys.stderr)
    os.replace(partial, path)


def _receive(url: str, partial: Path, *, checked: bool) -> None:
    """Appends to `partial` what is missing of the file; a server that cannot go on midway starts anew."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "afa_jax"} | ({"Range": f"bytes={have}-"} if have else {})
    )
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing, or the file has changed; the check will tell
            return
        if error.code >= 500:
            raise _BrokenOffError(f"at {have:,} bytes, the server answers {error.code} {error.reason}") from error
        raise
    except (ConnectionError, TimeoutError) as error:
        raise _BrokenOffError(f"at {have:,} bytes") from error
    with response:
        resumed = response.status == 206
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        if length is None and not checked:
            raise ValueError("the server does not say how long the file is, and it has no checksum")
        total = have + int(length) if length else None
        with partial.open("ab" if resumed else "wb") as file, _bar() as bar:
            task = bar.add_task(partial.name.removesuffix(".part"), total=total, completed=have)
            try:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    bar.update(task, advance=len(chunk))
            except (HTTPException, ConnectionError, TimeoutError) as error:
                raise _BrokenOffError(f"at {file.tell():,} bytes") from error
            if total is not None and file.tell() < total:
                raise _BrokenOffError(f"at {file.tell():,} of {total:,} bytes")


def _bar() -> Progress:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _check(path: Path, name: str, promised: str, then: str = "remove it") -> None:
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise UserError(f"{path} is a web page, not the file {name}: the server or mirror does not have it; {then}.")
    if not digest.startswith(promised):
        raise UserError(
            f"{path} is not the published file {name}: its sha256 begins {digest[:8]}, not {promised[:8]}; {then}."
        )
