"""Which LoRA adapter a request uses: what its files hold, not how anybody calls it.

vLLM reads an adapter when it is first used and perhaps again later, so an adapter whose files
change under a running engine counts as another one. Knows nothing of requests or keys.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

_WEIGHTS = (".safetensors", ".bin", ".pt")

_State = tuple[tuple[str, int, int, int], ...]
_first_seen: dict[tuple[int, str, str], str] = {}


def identity(request: Any) -> str:
    """What tells the adapter of vLLM's `LoRARequest` from any other."""
    path = Path(request.lora_path)
    if not path.is_dir():  # from a hub: its name is all there is
        return f"{request.lora_name}\0{request.lora_path}"
    now = _contents(path, _state(path))
    place = (request.lora_int_id, request.lora_name, request.lora_path)
    if getattr(request, "load_inplace", False):
        _first_seen[place] = now
    first = _first_seen.setdefault(place, now)
    return now if now == first else f"{first} then {now}"


def _state(directory: Path) -> _State:
    """What changes when a file of the adapter does."""
    files = (path for path in directory.iterdir() if _counts(path))
    found = ((path.name, path.stat()) for path in sorted(files))
    return tuple((name, at.st_ino, at.st_size, at.st_mtime_ns) for name, at in found)


def _counts(path: Path) -> bool:
    return path.name == "adapter_config.json" or path.suffix in _WEIGHTS


@functools.lru_cache(maxsize=1024)
def _contents(directory: Path, state: _State) -> str:
    """The digest of all files, read once for every state they are in."""
    digest = hashlib.sha256()
    for name, _, size, _ in state:
        digest.update(f"{name} {size}\0".encode())
        with (directory / name).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
