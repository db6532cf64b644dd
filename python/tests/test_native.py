"""The native module against a real node process: `python -m pytest python/tests/test_native.py`.

Needs the installed package and pytest, nothing else. Knows nothing of vLLM.
"""

import ast
import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flexkv import _native
from flexkv._native import Attachment, Copier, FlexkvError, KeyChain, NodeGone

CHECKOUT = Path(__file__).resolve().parents[2]
SECRET = b"a secret of tests"
TOKENS = 16
LAYERS = [4096, 1000, 3000]
BLOCK_BYTES = sum(LAYERS)
NAMESPACE = {
    "model": "org/model",
    "revision": "",
    "dtype": "bfloat16",
    "engine_layout": "test",
    "tokens_per_block": TOKENS,
    "layers": LAYERS,
    "tensor_parallel": 2,
    "pipeline_parallel": 1,
}
LONG = 30.0


def derive(rank=0, salt="", **changed):
    return _native.derive_root({**NAMESPACE, **changed}, SECRET, rank, 0, "", salt, [])


def keys(blocks, salt=""):
    """Keys of a prompt of so many blocks."""
    return KeyChain(derive(salt=salt)[1], SECRET, TOKENS).extend(range(blocks * TOKENS))


class Node:
    """A node process of the test's own, killed at the end."""

    def __init__(self, folder, slots=64, namespace=None, block_bytes=BLOCK_BYTES):
        self.socket = folder / "run" / "node.sock"
        config = folder / "node.toml"
        config.write_text(
            f"""
            name = "node"
            cluster = "tests"
            secret = "{SECRET.decode()}"
            [namespace]
            id = "{namespace or derive()[0]}"
            block_bytes = {block_bytes}
            [memory]
            slots = {slots}
            [network]
            listen = "127.0.0.1:0"
            [engine]
            socket = "{self.socket}"
            """
        )
        command = [
            sys.executable,
            "-m",
            "flexkv",
            "node",
            "--config",
            config,
            "--until-stdin-closes",
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def attach(self):
        return Attachment(self.socket, LONG)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    yield node
    node.kill()
    node.process.stdin.close()
    node.process.stderr.close()


class Memory:
    """A worker's KV memory: every layer in a buffer of its own, with gaps between blocks."""

    blocks = 10
    gap = 24

    def __init__(self):
        self.buffers = [
            ctypes.create_string_buffer(b"\xee" * ((size + self.gap) * self.blocks))
            for size in LAYERS
        ]

    def layers(self):
        return [
            (ctypes.addressof(buffer), size + self.gap, size, self.blocks)
            for buffer, size in zip(self.buffers, LAYERS, strict=True)
        ]

    def put(self, block, content):
        for buffer, size, at in self._parts(block):
            ctypes.memmove(ctypes.addressof(buffer) + at, content[:size], size)
            content = content[size:]

    def get(self, block):
        return b"".join(buffer.raw[at : at + size] for buffer, size, at in self._parts(block))

    def gaps(self):
        """All bytes that belong to no block."""
        ends = [
            buffer.raw[at + size : at + size + self.gap]
            for block in range(self.blocks)
            for buffer, size, at in self._parts(block)
        ]
        return set(b"".join(ends))

    def _parts(self, block):
        sized = zip(self.buffers, LAYERS, strict=True)
        return [(buffer, size, block * (size + self.gap)) for buffer, size in sized]


def content(number):
    return bytes((at * 7 + number * 31 + at // 256) % 256 for at in range(BLOCK_BYTES))


def drained(copier, count):
    """What became of `count` jobs, by their number."""
    ended = {}
    until = time.monotonic() + LONG
    while len(ended) < count:
        ended.update((job, rest) for job, *rest in copier.drain())
        assert time.monotonic() < until, f"{len(ended)} of {count} jobs ended"
        time.sleep(0.001)
    return ended


def load(attachment, prompt):
    """Loads what exists of a prompt; ticket and offsets."""
    ticket, blocks, _ = attachment.match(prompt)
    attachment.launch(ticket, blocks, LONG)
    offsets, local, remote = attachment.wait(ticket, LONG)
    assert (local, remote) == (len(offsets), 0)
    return ticket, offsets


def test_keys_are_those_of_other_languages():
    golden = json.loads((CHECKOUT / "crates/flexkv-block/golden/vectors.json").read_text())
    for chain in golden["chains"]:
        # Keys are written as numbers, the module speaks in little-endian bytes.
        root = bytes.fromhex(chain["root"])[::-1]
        keys = KeyChain(root, golden["secret"].encode(), chain["tokens_per_block"])
        middle = len(chain["tokens"]) // 2
        found = keys.extend(chain["tokens"][:middle]) + keys.extend(chain["tokens"][middle:])
        found = [found[at : at + 16][::-1].hex() for at in range(0, len(found), 16)]
        assert found == chain["keys"]


def test_namespaces_differ_where_they_must():
    name, root = derive()
    assert len(name) == 32 and len(root) == 16
    assert derive() == (name, root)
    assert derive(rank=1)[0] == name, "shards share a namespace"
    roots = {root, derive(rank=1)[1], derive(salt="tenant")[1], derive(dtype="float16")[1]}
    assert len(roots) == 4
    assert derive(dtype="float16")[0] != name


@pytest.mark.parametrize(
    ("changed", "error", "what"),
    [
        ({"layer": []}, FlexkvError, "unknown key `layer`"),
        ({"layers": []}, FlexkvError, "at least one layer"),
        ({"layers": [4096, 0]}, FlexkvError, "layer 1 has no bytes"),
        ({"tokens_per_block": 0}, FlexkvError, "at least one token"),
        ({"tokens_per_block": "x"}, TypeError, "`tokens_per_block`"),
        ({"model": ""}, FlexkvError, "`model` is empty"),
        ({"tensor_parallel": 0}, FlexkvError, "rank 0 is not below its size 0"),
    ],
)
def test_wrong_namespaces_are_named(changed, error, what):
    with pytest.raises(error, match=what):
        derive(**changed)


def test_missing_keys_are_named():
    with pytest.raises(FlexkvError, match="no key `model`"):
        _native.derive_root({"layers": [1], "tokens_per_block": 1}, SECRET, 0, 0, "", "", [])
    with pytest.raises(FlexkvError, match="secret is empty"):
        _native.derive_root(NAMESPACE, b"", 0, 0, "", "", [])
    with pytest.raises(FlexkvError, match="root"):
        KeyChain(b"short", SECRET, TOKENS)
    with pytest.raises(FlexkvError, match="tokens_per_block"):
        KeyChain(bytes(16), SECRET, 0)


def test_blocks_go_there_and_back(node):
    scheduler, worker = node.attach(), node.attach()
    assert (worker.namespace, worker.block_bytes) == (derive()[0], BLOCK_BYTES)
    assert not worker.gone
    prompt = keys(5)
    ticket, blocks, local = scheduler.match(prompt)
    assert (blocks, local) == (0, 0)
    scheduler.cancel(ticket)
    memory = Memory()
    for block in (8, 2, 5):
        memory.put(block, content(block))
    copier = Copier(worker, memory.layers())
    copier.store(1, prompt[: 2 * 16], 0, [8, 2])
    copier.store(2, prompt[: 3 * 16], 2, [5])
    assert drained(copier, 2) == {1: [True, [], 2 * BLOCK_BYTES], 2: [True, [], BLOCK_BYTES]}
    ticket, offsets = load(scheduler, prompt)
    assert len(offsets) == 3 == len(set(offsets))
    assert scheduler.poll(ticket) == (offsets, 3, 0)
    copier.load(3, offsets[:2], [0, 1])
    copier.load(4, offsets[2:], [9], scheduler.checksums(ticket)[2:])
    assert drained(copier, 2) == {3: [True, [], 2 * BLOCK_BYTES], 4: [True, [], BLOCK_BYTES]}
    assert [memory.get(block) for block in (0, 1, 9)] == [content(block) for block in (8, 2, 5)]
    assert memory.gaps() == {0xEE}
    assert copier.pending() == 0
    scheduler.cancel(ticket)
    scheduler.cancel(ticket)
    with pytest.raises(FlexkvError, match="not known"):
        scheduler.poll(ticket)
    copier.shutdown()
    with pytest.raises(FlexkvError, match="shut down"):
        copier.load(5, [], [])


def test_what_cannot_be_copied_is_told(node):
    session = node.attach()
    memory = Memory()
    memory.put(3, content(3))
    copier = Copier(session, memory.layers(), threads=2)
    copier.store(1, keys(3), 0, [3, 10, -1])
    assert drained(copier, 1) == {1: [False, [10, -1], BLOCK_BYTES]}
    ticket, offsets = load(session, keys(3))
    assert len(offsets) == 1, "the blocks behind are missing"
    copier.load(2, [*offsets, 2**60, *offsets], [0, 1, -5])
    [[ok, bad, moved]] = drained(copier, 1).values()
    assert (ok, sorted(bad), moved) == (False, [-5, 1], BLOCK_BYTES)
    copier.load(3, offsets, [1], [session.checksums(ticket)[0] ^ 1])
    assert drained(copier, 1) == {3: [False, [1], 0]}
    with pytest.raises(FlexkvError, match="not as many"):
        copier.load(4, offsets, [1, 2])
    with pytest.raises(FlexkvError, match="2 blocks for the 3 keys"):
        copier.store(4, keys(3), 0, [1, 2])
    with pytest.raises(FlexkvError, match="keys has 5 bytes"):
        copier.store(4, b"short", 0, [])
    with pytest.raises(FlexkvError, match="8000 bytes.*8096"):
        Copier(session, [(4096, 8000, 8000, 1)])


def test_a_prefetch_needs_nobody(node):
    session = node.attach()
    memory = Memory()
    copier = Copier(session, memory.layers())
    copier.store(1, keys(2), 0, [0, 1])
    drained(copier, 1)
    session.cancel(session.prefetch(keys(2), LONG))
    session.prefetch(keys(2, salt="other"), LONG)


def test_many_threads_share_a_session(node):
    session = node.attach()
    memory = Memory()
    copier = Copier(session, memory.layers(), threads=2)
    failed = []

    def use(number):
        try:
            for turn in range(20):
                prompt = keys(2, salt=f"{number}/{turn % 4}")
                copier.store(number * 100 + turn, prompt, 0, [number, number])
                session.cancel(session.match(prompt)[0])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=use, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert all(ok for ok, _, _ in drained(copier, 160).values())


def test_a_killed_node_is_gone(node):
    session = node.attach()
    memory = Memory()
    copier = Copier(session, memory.layers())
    copier.store(1, keys(1), 0, [0])
    drained(copier, 1)
    _, offsets = load(session, keys(1))
    node.kill()
    with pytest.raises(NodeGone):
        session.match(keys(1))
    assert session.gone
    copier.store(2, keys(1), 0, [0])
    copier.load(3, offsets, [1])
    assert drained(copier, 2) == {2: [False, [0], 0], 3: [False, [1], 0]}
    copier.shutdown()


def test_waiting_leaves_the_interpreter_to_others(tmp_path):
    errors = []

    def attach():
        try:
            Attachment(tmp_path / "nobody.sock", 2.0)
        except NodeGone as error:
            errors.append(error)

    waiting = threading.Thread(target=attach)
    waiting.start()
    turns = 0
    while waiting.is_alive():
        time.sleep(0.01)
        turns += 1
    assert turns > 5, "this thread ran while the other waited"
    assert "nobody.sock" in str(errors[0])
    assert issubclass(NodeGone, FlexkvError)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_times_that_are_none_are_refused(tmp_path, seconds):
    with pytest.raises(FlexkvError, match="timeout_s"):
        Attachment(tmp_path / "nobody.sock", seconds)


def test_a_forked_child_leaves_its_parents_session_alone(node):
    session = node.attach()
    memory = Memory()
    copier = Copier(session, memory.layers(), threads=2)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert session.gone and copier.drain() == [] and copier.pending() == 0
            with pytest.raises(NodeGone, match="forked"):
                session.match(keys(1))
            with pytest.raises(NodeGone, match="forked"):
                copier.load(1, [0], [0])
            copier.shutdown()
            del copier, session
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    until = time.monotonic() + LONG
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended[1:] == (0,), "the child ended by itself, without an error"
    copier.store(1, keys(1), 0, [0])
    assert drained(copier, 1) == {1: [True, [], BLOCK_BYTES]}


def test_the_command_runs_and_tells_its_exit_code(node):
    def run(*args):
        command = [sys.executable, "-m", "flexkv", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=LONG)

    version = run("--version")
    assert (version.returncode, version.stdout.split()[0]) == (0, "flexkv")
    assert _native.__version__ in version.stdout
    assert run("no-such-command").returncode == 2
    missing = run("node", "--config", "/nonexistent.toml")
    assert (missing.returncode, "/nonexistent.toml" in missing.stderr) == (1, True)
    node.attach()
    node.process.send_signal(signal.SIGINT)
    assert "Traceback" not in node.process.stderr.read().decode()
    assert node.process.wait(LONG) >= 0, "it ended by itself"
    assert not node.socket.exists()


def test_the_command_starts_itself_again_for_processes_of_its_own(tmp_path):
    trace = tmp_path / "trace.jsonl"
    request = {"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [1, 2]}
    trace.write_text(f"{json.dumps(request)}\n" * 4)
    words = ["replay", "--trace", trace, "--nodes", "2", "--processes", "--alone", "--json"]
    command = [sys.executable, "-m", "flexkv", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stderr
    assert "node processes: " in done.stderr
    report = json.loads(done.stdout)
    assert (report["nodes"], report["dead_nodes"]) == (2, 0)


def test_the_node_tells_what_it_no_longer_holds(tmp_path):
    node = Node(tmp_path, slots=4)
    try:
        session, memory = node.attach(), Memory()
        copier = Copier(session, memory.layers())
        assert session.removed() == (b"", 0)
        copier.store(1, keys(4), 0, [0, 1, 2, 3])
        drained(copier, 1)
        copier.store(2, keys(2, "other"), 0, [4, 5])
        drained(copier, 1)
        gone, until = b"", time.monotonic() + LONG
        while len(gone) < 2 * 16 and time.monotonic() < until:
            told, lost = session.removed()
            gone += told
            assert lost == 0
            time.sleep(0.01)
        told = {gone[at : at + 16] for at in range(0, len(gone), 16)}
        stored = keys(4)
        assert told < {stored[at : at + 16] for at in range(0, len(stored), 16)}
        assert len(told) == 2
    finally:
        node.kill()
    with pytest.raises(NodeGone):
        session.match(keys(1))


def test_the_stubs_name_what_there_is():
    stubs = ast.parse((Path(_native.__file__).parent / "_native.pyi").read_text())
    types_only = {"Namespace"}
    for item in stubs.body:
        if not isinstance(item, ast.ClassDef | ast.FunctionDef) or item.name in types_only:
            continue
        found = getattr(_native, item.name)
        members = [node for node in ast.walk(item) if isinstance(node, ast.FunctionDef)]
        named = {member.name for member in members if member is not item}
        assert named <= set(dir(found)), item.name
        if isinstance(item, ast.ClassDef) and not issubclass(found, Exception):
            public = {name for name in vars(found) if not name.startswith("_")}
            assert public == {name for name in named if not name.startswith("_")}, item.name
    public = {name for name in vars(_native) if not name.startswith("_")}
    assert public <= {getattr(item, "name", None) for item in stubs.body}
