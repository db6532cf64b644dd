"""Reads of other transfer libraries between two processes of this host, as JSON lines.

    peer.py mooncake|mooncake-store|nixl-tcp|nixl-shm SIZES BATCHES SECONDS

Each line says for one size and batch: GB/s, p50 and p99 in us, and the CPU seconds of all processes
for 10^9 bytes. Blocks are read in random order out of more memory than caches hold, into another such
memory. None of them verifies what it reads. `mooncake` is the transfer engine alone, which is told where
each block is; `mooncake-store` looks each up at its master. Knows nothing of what they are compared with.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = 256 << 20
PATIENCE_S = 30.0


def memory() -> tuple[mmap.mmap, int]:
    """Filled memory and its address."""
    area = mmap.mmap(-1, MEMORY)
    pattern = os.urandom(1 << 20)
    for at in range(0, MEMORY, len(pattern)):
        area[at : at + len(pattern)] = pattern
    return area, ctypes.addressof(ctypes.c_char.from_buffer(area))


def cpu(pid: int) -> float:
    """CPU seconds of all threads that live, of a process and of those that it started."""
    seconds = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            seconds += int((task / "schedstat").read_text().split()[0]) / 1e9
            children = (task / "children").read_text().split()
        except (OSError, IndexError):
            continue  # It has just ended.
        seconds += sum(cpu(int(child)) for child in children)
    return seconds


def put(path: Path, content: bytes) -> None:
    """Writes a file that is never seen half-written."""
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.rename(path)


def get(path: Path) -> bytes:
    """Reads a file as soon as it is there."""
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            sys.exit(f"the other process does not write {path.name}")
        time.sleep(0.01)
    return path.read_bytes()


class Mooncake:
    """The transfer engine of Mooncake, over TCP."""

    def __init__(self, _name: str) -> None:
        from mooncake.engine import TransferEngine

        self._engine = TransferEngine()
        if self._engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
            sys.exit("the transfer engine cannot be set up")
        self._area, self._address = memory()
        if self._engine.register_memory(self._address, MEMORY) != 0:
            sys.exit("memory cannot be registered")

    def own(self, folder: Path) -> None:
        """Serves its memory until the folder says that it is over."""
        place = f"127.0.0.1:{self._engine.get_rpc_port()} {self._address}"
        put(folder / "owner", place.encode())
        get_end(folder, lambda: time.sleep(0.05))

    def reader(self, folder: Path, size: int) -> Callable[[list[int], list[int]], None]:
        """What reads the blocks of these places into those places."""
        host, base = get(folder / "owner").decode().split()

        def read(sources: list[int], places: list[int]) -> None:
            theirs = [int(base) + place * size for place in sources]
            ours = [self._address + place * size for place in places]
            if len(ours) == 1:
                done = self._engine.transfer_sync_read(host, ours[0], theirs[0], size)
            else:
                sizes = [size] * len(ours)
                done = self._engine.batch_transfer_sync_read(host, ours, theirs, sizes)
            if done != 0:
                sys.exit(f"a read failed: {done}")

        return read


def free_port() -> int:
    """A port of this host that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class MooncakeStore:
    """The store of Mooncake, over TCP: a master, an owner that only lends memory, and a client."""

    def __init__(self, role: str) -> None:
        from mooncake.store import MooncakeDistributedStore

        self._owns = role == "owner"
        self._store = MooncakeDistributedStore()
        self._folder: Path | None = None
        if not self._owns:
            self._area, self._address = memory()

    def _set_up(self, folder: Path) -> None:
        metadata, master = get(folder / "master").decode().split()
        # Room for all blocks of one size; the master evicts before all of it is used.
        lent = 2 * MEMORY if self._owns else 0
        done = self._store.setup("127.0.0.1", metadata, lent, 64 << 20, "tcp", "", master)
        if done != 0:
            sys.exit(f"the store cannot be set up: {done}")

    def own(self, folder: Path) -> None:
        """Runs the master, and lends memory until the folder says that it is over."""
        rpc, http, metrics = free_port(), free_port(), free_port()
        command = [
            str(Path(sys.executable).with_name("mooncake_master")),
            f"-rpc_port={rpc}",
            "-rpc_address=127.0.0.1",
            "-enable_http_metadata_server=true",
            "-http_metadata_server_host=127.0.0.1",
            f"-http_metadata_server_port={http}",
            f"-metrics_port={metrics}",
        ]
        master = subprocess.Popen(command, stdout=sys.stderr)
        try:
            for port in (rpc, http):
                wait_for(port)
            place = f"http://127.0.0.1:{http}/metadata 127.0.0.1:{rpc}"
            put(folder / "master", place.encode())
            self._set_up(folder)
            put(folder / "owner", b"")
            get_end(folder, lambda: time.sleep(0.05))
            self._store.close()
        finally:
            master.kill()
            master.wait()

    def reader(self, folder: Path, size: int) -> Callable[[list[int], list[int]], None]:
        """What reads the blocks of these places into those places. Puts them there first."""
        if self._folder is None:
            self._folder = folder
            get(folder / "owner")
            self._set_up(folder)
            if self._store.register_buffer(self._address, MEMORY) != 0:
                sys.exit("memory cannot be registered")
        self._store.remove_all(True)
        for place in range(MEMORY // size):
            done = self._store.put_from(f"{size}/{place}", self._address + place * size, size)
            if done != 0:
                sys.exit(f"a block was not taken: {done}")

        def read(sources: list[int], places: list[int]) -> None:
            keys = [f"{size}/{place}" for place in sources]
            ours = [self._address + place * size for place in places]
            if len(keys) == 1:
                read = [self._store.get_into(keys[0], ours[0], size)]
            else:
                read = self._store.batch_get_into(keys, ours, [size] * len(keys))
            if any(bytes_read != size for bytes_read in read):
                sys.exit(f"a read failed: {read}")

        return read


def wait_for(port: int) -> None:
    """Waits until someone listens at a port of this host."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                sys.exit(f"nobody listens at port {port}")
            time.sleep(0.05)


class Nixl:
    """NIXL with UCX, over what `UCX_TLS` says."""

    def __init__(self, name: str) -> None:
        from nixl_cu12._api import nixl_agent, nixl_agent_config

        self._agent = nixl_agent(name, nixl_agent_config(backends=[]))
        params = self._agent.get_plugin_params("UCX")
        # UCX does not handle failures of peers over shared memory.
        if os.environ["UCX_TLS"] == "shm":
            params["ucx_error_handling_mode"] = "none"
        self._agent.create_backend("UCX", params)
        self._area, self._address = memory()
        self._agent.register_memory([(self._address, MEMORY, 0, "")], "DRAM")

    def own(self, folder: Path) -> None:
        """Serves its memory until the folder says that it is over."""
        put(folder / "address", str(self._address).encode())
        put(folder / "owner", self._agent.get_agent_metadata())
        self._agent.add_remote_agent(get(folder / "reader"))

        def look() -> None:
            self._agent.get_new_notifs()
            time.sleep(0.0005)

        get_end(folder, look)

    def reader(self, folder: Path, size: int) -> Callable[[list[int], list[int]], None]:
        """What reads the blocks of these places into those places."""
        if not (folder / "reader").exists():
            put(folder / "reader", self._agent.get_agent_metadata())
            name = self._agent.add_remote_agent(get(folder / "owner"))
            self._owner = name.decode() if isinstance(name, bytes) else name
            self._agent.make_connection(self._owner)
        base = int(get(folder / "address"))

        def described(start: int, places: list[int]) -> Any:
            blocks = [(start + place * size, size, 0) for place in places]
            return self._agent.get_xfer_descs(blocks, "DRAM")

        def read(sources: list[int], places: list[int]) -> None:
            ours, theirs = described(self._address, places), described(base, sources)
            handle = self._agent.initialize_xfer("READ", ours, theirs, self._owner)
            state = self._agent.transfer(handle)
            while state == "PROC":
                state = self._agent.check_xfer_state(handle)
            self._agent.release_xfer_handle(handle)
            if state != "DONE":
                sys.exit(f"a read ended as {state}")

        return read


def get_end(folder: Path, wait: Callable[[], None]) -> None:
    """Waits, again and again, until the folder says that it is over, or the reader is gone."""
    parent = os.getppid()
    while not (folder / "end").exists() and os.getppid() == parent:
        wait()


Library = Mooncake | MooncakeStore | Nixl


def measure(library: Library, folder: Path, words: list[str]) -> None:
    """Reads for each size and batch, and prints what it took."""
    draw = random.Random(1)
    sizes, batches = ([int(word) for word in text.split(",")] for text in words[:2])
    seconds = float(words[2])
    for size in sizes:
        read = library.reader(folder, size)
        blocks = range(MEMORY // size)
        for batch in batches:
            read(draw.sample(blocks, batch), draw.sample(blocks, batch))
            times = []
            used, began = cpu(os.getpid()), time.perf_counter()
            while time.perf_counter() - began < seconds:
                sources, places = draw.sample(blocks, batch), draw.sample(blocks, batch)
                start = time.perf_counter()
                read(sources, places)
                times.append(time.perf_counter() - start)
            took = time.perf_counter() - began
            used = cpu(os.getpid()) - used
            gigabytes = len(times) * batch * size / 1e9
            times.sort()
            line = {
                "size": size,
                "batch": batch,
                "gb_per_second": gigabytes / took,
                "p50_us": times[len(times) // 2] * 1e6,
                "p99_us": times[len(times) * 99 // 100] * 1e6,
                "cpu_per_gb": used / gigabytes,
            }
            print(json.dumps(line), flush=True)


def main() -> None:
    """Starts the owner as a process of its own, and reads from it."""
    peer, *words = sys.argv[1:]
    make = {"mooncake": Mooncake, "mooncake-store": MooncakeStore}.get(peer, Nixl)
    if words[0] == "own":
        make("owner").own(Path(words[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, peer, "own", name]
        owner = subprocess.Popen(command, stdout=sys.stderr)
        try:
            measure(make("reader"), folder, words)
        finally:
            (folder / "end").touch()
            try:
                owner.wait(timeout=10)
            except subprocess.TimeoutExpired:
                owner.kill()
                owner.wait()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # NIXL crashes when Python takes it apart; all is said and done by now.
    os._exit(0)
