"""Single files out of vLLM's wheels on the package index, without downloading the wheels.

A wheel is a zip archive, and the index serves parts of files: its directory and one member are a
few hundred kilobytes of 300 megabytes. Files are kept in `~/.cache/flexkv/wheels`.
"""

from __future__ import annotations

import io
import json
import os
import re
import urllib.request
import zipfile
from pathlib import Path

CACHE = Path(os.environ.get("FLEXKV_TEST_CACHE", Path.home() / ".cache" / "flexkv")) / "wheels"
_JSON = "application/vnd.pypi.simple.v1+json"


def source(version: str, name: str) -> str:
    """The text of the file `name` in vLLM's wheel of `version`, which may be "newest"."""
    if version == "newest":
        version = newest()
    path = CACHE / version / name
    if not path.exists():
        (entry,) = [entry for entry in _listing() if _version(entry) == version][:1]
        with zipfile.ZipFile(io.BufferedReader(_Remote(entry["url"]), 1 << 20)) as wheel:
            text = wheel.read(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return path.read_text(encoding="utf-8")


def newest() -> str:
    """The newest release that has a wheel for this kind of machine."""
    versions = {_version(entry) for entry in _listing()}
    return max(versions, key=lambda text: [int(part) for part in text.split(".")])


def _listing() -> list[dict[str, str]]:
    """Wheels of releases for Linux on x86-64."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    request = urllib.request.Request(f"{index}/vllm/", headers={"Accept": _JSON})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    return [entry for entry in files if _version(entry)]


def _version(entry: dict[str, str]) -> str:
    """The version of a release's wheel, or nothing for any other file."""
    pattern = r"vllm-([0-9]+(?:\.[0-9]+)+)-cp38-abi3-manylinux\w*_x86_64\.whl"
    found = re.fullmatch(pattern, entry["filename"])
    return found.group(1) if found else ""


class _Remote(io.RawIOBase):
    """A file at a URL, read in parts."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._at = 0
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=60) as answer:
            self._size = int(answer.headers["Content-Length"])

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        headers = {"Range": f"bytes={self._at}-{end - 1}"}
        request = urllib.request.Request(self._url, headers=headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            data = answer.read()
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
