# Owns debuginfod: asking its servers for a build-id and keeping the answer where elfutils' client keeps
# it. Bounded in time and size. What a server sends is as untrusted as any file; the caller proves it.
from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field

from symbols.files import files
from symbols.safefiles import Folder

_ID = re.compile(r"[0-9a-f]{4,128}\Z")
_CHUNK = 1 << 18
_MISS_S = 600  # elfutils' cache_miss_s: an empty file means "asked lately, not there"


def _cache_folder() -> str:
    """debuginfod_find_debuginfo(3): DEBUGINFOD_CACHE_PATH, XDG_CACHE_HOME, ~/.cache."""
    named = os.environ.get("DEBUGINFOD_CACHE_PATH")
    if named:
        return named
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "debuginfod_client")


def _seconds() -> float:
    try:
        return min(max(float(os.environ.get("DEBUGINFOD_TIMEOUT", "10")), 1.0), 120.0)
    except ValueError:
        return 10.0


@dataclass(slots=True)
class Debuginfod:
    """A client. urls: servers in the order they are asked; empty: only the cache is looked at."""

    urls: tuple[str, ...] = field(
        default_factory=lambda: tuple(os.environ.get("DEBUGINFOD_URLS", "").split())
    )
    cache: str = field(default_factory=_cache_folder)
    timeout: float = field(default_factory=_seconds)  # seconds without an answer
    most_time: float = 300.0  # seconds for one whole download
    most_bytes: int = 4 << 30
    tried: list[str] = field(default_factory=list)

    def find(self, build_id: str) -> str | None:
        """A file that claims to be the debug information of a build-id; None, and why in `tried`."""
        self.tried = []
        if not _ID.match(build_id):
            self.tried.append(f"debuginfod: {build_id!r} is no build-id")
            return None
        elsewhere = files().fetch(build_id, bool(self.urls))
        if elsewhere is not None:
            path, self.tried = elsewhere
            return path
        folder = os.path.join(self.cache, build_id)
        target = os.path.join(folder, "debuginfo")
        try:
            status = os.stat(target)
        except OSError:
            self.tried.append(f"{target}: not there")
        else:
            if status.st_size:
                return target
            if time.time() - status.st_mtime < _MISS_S:
                self.tried.append(f"{target}: the servers did not have it lately")
                return None
        if not self.urls:
            self.tried.append("debuginfod: DEBUGINFOD_URLS is not set")
            return None
        for url in self.urls:
            if self._download(f"{url.rstrip('/')}/buildid/{build_id}/debuginfo", folder, target):
                return target
        return None

    def _download(self, url: str, folder: str, target: str) -> bool:
        if not url.startswith(("http://", "https://")):
            self.tried.append(f"{url}: only http and https are asked")
            return False
        import tempfile  # lazily, both: a hundred modules, and hardly ever needed
        import urllib.request

        scratch = ""
        deadline = time.monotonic() + self.most_time
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "afterfree"})  # noqa: S310
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:  # noqa: S310
                Folder.open(folder, make=True, own=False).close()
                handle, scratch = tempfile.mkstemp(prefix="debuginfo.", dir=folder)
                with os.fdopen(handle, "wb") as file:
                    total = 0
                    while chunk := answer.read(_CHUNK):
                        total += len(chunk)
                        if total > self.most_bytes:
                            raise ValueError(f"sends more than {self.most_bytes} bytes")
                        if time.monotonic() > deadline:
                            raise ValueError(f"takes longer than {self.most_time:.0f} s")
                        file.write(chunk)
                    wanted = answer.headers.get("Content-Length")
                    if not total or (wanted and wanted.isdigit() and int(wanted) != total):
                        raise ValueError(f"sent {total} bytes of {wanted or 'an answer'}")
                os.replace(scratch, target)
                scratch = ""
                return True
        except (OSError, ValueError, EOFError) as error:  # URLError and timeouts are OSErrors
            self.tried.append(f"{url}: {error}")
            return False
        except Exception as error:  # http.client's own exceptions are no OSErrors
            if type(error).__module__ != "http.client":
                raise
            self.tried.append(f"{url}: {type(error).__name__} {error}")
            return False
        finally:
            if scratch:
                os.unlink(scratch)
