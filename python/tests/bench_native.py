"""What copies and matches cost a worker: `python python/tests/bench_native.py [LAYERS [BYTES [BLOCKS]]]`.

Against a node process of its own, on one copying thread. Copies are compared with `memcpy` of the
same parts of blocks and of all of it at once. Knows nothing of vLLM.
"""

import argparse
import ctypes
import mmap
import statistics
import tempfile
import time
from pathlib import Path

from flexkv._native import Copier, KeyChain, derive_root

from test_native import LONG, SECRET, TOKENS, Node

ROUNDS = 7
MATCHES = 2000


def timed(name, gigabytes, work):
    """Prints the speed of `work`, by the clock and by the processor time of this process."""
    walls, cpus = [], []
    for turn in range(ROUNDS):
        wall, cpu = time.perf_counter(), time.process_time()
        work(turn)
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    best, middle, cpu = (
        gigabytes / took for took in (min(walls), statistics.median(walls), min(cpus))
    )
    print(f"{name:18} best {best:5.2f}  median {middle:5.2f}  per CPU second {cpu:5.2f} GB/s")


def ended(copier):
    """Waits until the only job has ended well."""
    while not (jobs := copier.drain()):
        time.sleep(0.0001)
    assert jobs[0][1], jobs


class Bench:
    def __init__(self, node, namespace, blocks):
        self.session = node.attach()
        self.namespace, self.blocks = namespace, list(range(blocks))
        self.parts = namespace["layers"]
        self.bytes = sum(self.parts) * blocks
        self.source = [ctypes.create_string_buffer(b"\x5a" * part * blocks) for part in self.parts]
        self.target = [ctypes.create_string_buffer(part * blocks) for part in self.parts]

    def copier(self, buffers):
        count = len(self.blocks)
        layers = [
            (ctypes.addressof(buffer), part, part, count)
            for buffer, part in zip(buffers, self.parts, strict=True)
        ]
        return Copier(self.session, layers)

    def keys(self, salt):
        root = derive_root(self.namespace, SECRET, 0, 0, "", str(salt), [])[1]
        return KeyChain(root, SECRET, TOKENS).extend(range(TOKENS * len(self.blocks)))

    def copies(self):
        gigabytes = self.bytes / 1e9
        saver, loader = self.copier(self.source), self.copier(self.target)
        prompts = [self.keys(turn) for turn in range(ROUNDS)]

        def store(turn):
            saver.store(turn, prompts[turn], 0, self.blocks)
            ended(saver)

        timed("store", gigabytes, store)
        ticket, blocks, _ = self.session.match(prompts[-1])
        self.session.launch(ticket, blocks, LONG)
        offsets = self.session.wait(ticket, LONG)[0]
        assert len(offsets) == len(self.blocks)

        def load(sums):
            loader.load(0, offsets, self.blocks, sums)
            ended(loader)

        sums = self.session.checksums(ticket)
        timed("load", gigabytes, lambda _: load(None))
        timed("load and verify", gigabytes, lambda _: load(sums))
        for source, target in zip(self.source, self.target, strict=True):
            assert ctypes.string_at(source, len(target)) == target.raw
        self.session.cancel(ticket)

    def memcpy(self):
        shared = mmap.mmap(-1, self.bytes)
        start = ctypes.addressof(ctypes.c_char.from_buffer(shared))
        ctypes.memset(start, 1, self.bytes)
        moves, at = [], start
        for block in self.blocks:
            for buffer, part in zip(self.target, self.parts, strict=True):
                moves.append((ctypes.addressof(buffer) + block * part, at, part))
                at += part
        move = ctypes.memmove
        flat = ctypes.create_string_buffer(self.bytes)
        timed("memcpy of parts", self.bytes / 1e9, lambda _: [move(*args) for args in moves])
        timed("memcpy at once", self.bytes / 1e9, lambda _: move(flat, start, self.bytes))

    def matches(self):
        for count in (7, 32, 128, 512, 2048):
            prompt = (self.keys(0) * (count // len(self.blocks) + 1))[: 16 * count]
            took = []
            for _ in range(MATCHES):
                began = time.perf_counter()
                ticket, _, _ = self.session.match(prompt)
                took.append(time.perf_counter() - began)
                self.session.cancel(ticket)
            took.sort()
            middle, late = (1e6 * took[int(MATCHES * part)] for part in (0.5, 0.99))
            print(f"match {count:5} keys   median {middle:5.1f}  p99 {late:6.1f} us")


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("layers", nargs="?", type=int, default=4)
    options.add_argument("bytes", nargs="?", type=int, default=65536, help="of a block, each layer")
    options.add_argument("blocks", nargs="?", type=int, default=400)
    asked = options.parse_args()
    namespace = {
        "model": "bench",
        "revision": "",
        "dtype": "bfloat16",
        "engine_layout": "bench",
        "tokens_per_block": TOKENS,
        "layers": [asked.bytes] * asked.layers,
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        name = derive_root(namespace, SECRET, 0, 0, "", "", [])[0]
        node = Node(Path(folder), asked.blocks * 2 + 8, name, asked.bytes * asked.layers)
        try:
            bench = Bench(node, namespace, asked.blocks)
            bench.copies()
            bench.memcpy()
            bench.matches()
        finally:
            node.kill()


if __name__ == "__main__":
    main()
