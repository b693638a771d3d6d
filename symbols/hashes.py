# Owns SHA-256 without OpenSSL, which hashlib would map: 3.4 MB of each process's resident memory.
from __future__ import annotations

try:
    from _sha256 import sha256  # type: ignore[import-not-found]  # 3.11
except ImportError:
    from hashlib import sha256

__all__ = ["sha256"]
