"""Finding and starting nodes, with the real command where the native module is there."""

import dataclasses
import importlib.util
import os
import signal
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexkv import node
from flexkv.config import Config, ConfigError

NAMESPACE = "000102030405060708090a0b0c0d0e0f"
DEPLOYMENT = node.Deployment(NAMESPACE, 4096)
native = pytest.mark.skipif(
    importlib.util.find_spec("flexkv._native") is None, reason="needs the native module"
)


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    tmp_path.chmod(0o700)
    yield Config(runtime_dir=str(tmp_path), cpu_cache_gb=0.01)
    for path in tmp_path.glob("*.pid"):
        if node._runs(path):
            os.kill(int(path.read_text()), signal.SIGKILL)


def test_the_configuration_says_what_the_settings_say(config: Config, tmp_path: Path) -> None:
    shared = Config(
        runtime_dir=str(tmp_path),
        redis_host="127.0.0.1",
        redis_password="secret words",
        local_ip="10.0.0.2",
        cpu_cache_gb=2,
        node_name="a.b",
        shared_memory=False,
        tls_certificate_file="/etc/node.pem",
        tls_key_file="/etc/node.key",
        tls_ca_file="/etc/ca.pem",
        tls_name="node.flexkv",
    )
    at = node.files(shared, NAMESPACE)
    text = node.toml(shared, DEPLOYMENT, at)
    read = tomllib.loads(text)
    assert read["name"] == "a-b"
    assert read["namespace"] == {"id": NAMESPACE, "block_bytes": 4096}
    assert read["memory"]["size"] == f"{2 << 30} B"
    assert read["redis"]["url"] == "redis://127.0.0.1:6379"
    assert read["network"] == {
        "listen": "10.0.0.2:0",
        "shared_memory": False,
        "tls_certificate_file": "/etc/node.pem",
        "tls_key_file": "/etc/node.key",
        "tls_ca_file": "/etc/ca.pem",
        "tls_name": "node.flexkv",
    }
    assert read["secret"] == "secret words", "the password serves as the cluster's secret"
    alone = tomllib.loads(node.toml(config, DEPLOYMENT, node.files(config, NAMESPACE)))
    assert "redis" not in alone
    assert alone["network"] == {"listen": "127.0.0.1:0"}


def test_an_ssd_is_spread_over_its_directories(config: Config, tmp_path: Path) -> None:
    def section(**more: Any) -> Any:
        settings = dataclasses.replace(config, **more)
        return tomllib.loads(node.toml(settings, DEPLOYMENT, node.files(config, NAMESPACE)))

    assert "ssd" not in section()
    told = section(ssd_cache_gb=3, ssd_cache_dir=("/a", "/b"), eviction_policy="slru")
    assert told["ssd"]["directories"] == ["/a", "/b"]
    assert told["ssd"]["sizes"] == f"{3 << 29} B"
    assert (told["ssd"]["policy"], told["memory"]["policy"]) == ("slru", "slru")
    for half in ({"ssd_cache_gb": 3}, {"ssd_cache_dir": ("/a",)}):
        with pytest.raises(ConfigError, match="needed together"):
            section(**half)


def test_a_host_alone_draws_one_secret(config: Config) -> None:
    first = node.cluster_secret(config)
    assert len(first) == 32
    assert node.cluster_secret(config) == first


def test_engines_that_name_a_node_have_their_own(config: Config) -> None:
    own = Config(runtime_dir=config.runtime_dir, node_name="second")
    assert node.files(own, NAMESPACE).socket != node.files(config, NAMESPACE).socket


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="mode 0700"):
        node.runtime_dir(Config(runtime_dir=str(tmp_path)))


def test_a_node_that_cannot_start_is_told_with_its_reason(config: Config) -> None:
    broken = Config(runtime_dir=config.runtime_dir, node_command="sh -c 'echo no luck; exit 3'")
    with pytest.raises(node.NodeStartError, match=r"ended at once.*no luck"):
        node.ensure(broken, DEPLOYMENT)


@native
def test_engines_that_start_together_start_one_node(config: Config) -> None:
    sockets: list[Path] = []
    threads = [
        threading.Thread(target=lambda: sockets.append(node.ensure(config, DEPLOYMENT)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(sockets) == 4
    assert len(set(sockets)) == 1
    at = node.files(config, NAMESPACE)
    assert at.log.read_text().count('"event":"ready"') == 1


@native
def test_a_node_is_no_child_of_the_engine_that_started_it(config: Config) -> None:
    node.ensure(config, DEPLOYMENT)
    pid = int(node.files(config, NAMESPACE).pid.read_text())
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"PPid:\t{os.getpid()}\n" not in status


@native
def test_a_node_that_died_is_started_again(config: Config) -> None:
    from flexkv._native import Attachment

    path = node.ensure(config, DEPLOYMENT)
    attachment = Attachment(str(path), 10.0)
    assert (attachment.namespace, attachment.block_bytes) == (NAMESPACE, 4096)
    at = node.files(config, NAMESPACE)
    os.kill(int(at.pid.read_text()), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not attachment.gone and time.monotonic() < deadline:
        time.sleep(0.01)
    assert attachment.gone
    again = Attachment(str(node.ensure(config, DEPLOYMENT)), 10.0)
    assert not again.gone
