"""Settings: the original's names, a file above variables, and errors that name the setting."""

from pathlib import Path

import pytest

from flexkv.config import Config, ConfigError, load


def test_nothing_need_be_set() -> None:
    assert load({}) == Config()


def test_variables_have_the_names_of_the_original() -> None:
    config = load(
        {
            "FLEXKV_CPU_CACHE_GB": "32",
            "FLEXKV_REDIS_HOST": "10.0.0.1",
            "FLEXKV_REDIS_PORT": "6380",
            "FLEXKV_REDIS_PASSWORD": "123",
            "FLEXKV_ENABLE_P2P_CPU": "1",
            "FLEXKV_LOCAL_IP": "10.0.0.2",
        }
    )
    assert (config.cpu_cache_gb, config.redis_host, config.redis_port) == (32.0, "10.0.0.1", 6380)
    assert (config.redis_password, config.local_ip) == ("123", "10.0.0.2")
    assert config.enable_p2p_cpu is True
    assert "123" not in repr(config)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("flexkv.yml", "cpu_cache_gb: 32\nredis_port: 7000\nssd_cache_dir: /data\n"),
        ("flexkv.json", '{"cpu_cache_gb": 32, "redis_port": 7000, "ssd_cache_dir": "/data"}'),
    ],
)
def test_a_file_wins_over_variables(tmp_path: Path, name: str, text: str) -> None:
    if name.endswith("yml"):
        pytest.importorskip("yaml")
    path = tmp_path / name
    path.write_text(text)
    environ = {
        "FLEXKV_CONFIG_PATH": str(path),
        "FLEXKV_CPU_CACHE_GB": "1",
        "FLEXKV_LOCAL_IP": "::1",
    }
    config = load(environ)
    assert (config.cpu_cache_gb, config.redis_port, config.local_ip) == (32.0, 7000, "::1")


def test_what_is_not_needed_is_accepted_and_told() -> None:
    config = load({"FLEXKV_REMOTE_CACHE_GB": "1024", "FLEXKV_INDEX_ACCEL": "1"})
    assert len(config.notes) == 2
    assert config.notes[0].startswith("FLEXKV_REMOTE_CACHE_GB has no effect")


def test_directories_are_a_list_or_one_text(tmp_path: Path) -> None:
    config = load({"FLEXKV_SSD_CACHE_GB": "1.5", "FLEXKV_SSD_CACHE_DIR": "/a; /b;"})
    assert (config.ssd_cache_gb, config.ssd_cache_dir) == (1.5, ("/a", "/b"))
    path = tmp_path / "f.json"
    path.write_text('{"ssd_cache_dir": ["/c", "/d"]}')
    assert load({"FLEXKV_CONFIG_PATH": str(path)}).ssd_cache_dir == ("/c", "/d")


@pytest.mark.parametrize(
    ("environ", "expect"),
    [
        ({"FLEXKV_CPU_CACH_GB": "1"}, "FLEXKV_CPU_CACH_GB is no setting; did you mean FLEXKV_CPU"),
        ({"FLEXKV_REDIS_HOTS": "x"}, "did you mean FLEXKV_REDIS_HOST?"),
        ({"FLEXKV_CPU_CACHE_GB": "much"}, "FLEXKV_CPU_CACHE_GB must be a number, not 'much'"),
        ({"FLEXKV_CPU_CACHE_GB": "0"}, "FLEXKV_CPU_CACHE_GB must be above 0"),
        ({"FLEXKV_SSD_CACHE_GB": "0"}, "FLEXKV_SSD_CACHE_GB must be above 0"),
        ({"FLEXKV_EVICTION_POLICY": "mru"}, "FLEXKV_EVICTION_POLICY must be one of lru, half-age"),
        ({"FLEXKV_REDIS_PORT": "70000"}, "FLEXKV_REDIS_PORT is no port"),
        (
            {"FLEXKV_RECOMPUTE_TOKENS_PER_SECOND": "0"},
            "FLEXKV_RECOMPUTE_TOKENS_PER_SECOND must be above 0",
        ),
        ({"FLEXKV_ENABLE_P2P_CPU": "maybe"}, "must be true or false, not 'maybe'"),
        ({"FLEXKV_CONFIG_PATH": "/no/such.yml"}, "/no/such.yml, which cannot be read"),
    ],
)
def test_what_is_wrong_is_named(environ: dict[str, str], expect: str) -> None:
    with pytest.raises(ConfigError, match=None) as error:
        load(environ)
    assert expect in str(error.value)


def test_a_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    for text, expect in [
        ("{", "f.json is not valid"),
        ("[1]", "must hold settings"),
        ('{"cpu_cache": 1}', "`cpu_cache` in"),
        ('{"cpu_cache_gb": true}', "must be a number"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError) as error:
            load({"FLEXKV_CONFIG_PATH": str(path)})
        assert expect in str(error.value)


def test_the_original_switch_turns_it_off() -> None:
    assert load({"ENABLE_FLEXKV": "0"}).enable is False
