"""What separates the requests of one deployment. No vLLM is needed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flexkv.integration.vllm import adapters, namespace


def adapter(path: Path, number: int = 1, name: str = "x", **more: Any) -> SimpleNamespace:
    return SimpleNamespace(lora_int_id=number, lora_name=name, lora_path=str(path), **more)


def write(path: Path, weights: bytes) -> Path:
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(weights)
    return path


def test_adapters_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    one = adapters.identity(adapter(write(tmp_path / "one", b"1" * 99)))
    same = adapters.identity(adapter(write(tmp_path / "same", b"1" * 99), 2, "y"))
    other = adapters.identity(adapter(write(tmp_path / "other", b"1" * 98 + b"2"), 3))
    assert one == same != other


def test_an_adapter_that_changes_under_the_engine_is_another_one(tmp_path: Path) -> None:
    path = write(tmp_path / "adapter", b"old")
    before = adapters.identity(adapter(path, 11))
    write(path, b"newer")
    changed = adapters.identity(adapter(path, 11))
    fresh = adapters.identity(adapter(path, 12))
    assert len({before, changed, fresh}) == 3, "what the engine has loaded is not known"
    assert adapters.identity(adapter(path, 11, load_inplace=True)) == fresh
    assert adapters.identity(adapter(path, 11)) == fresh


def test_an_adapter_from_elsewhere_is_known_by_its_name() -> None:
    one = adapters.identity(adapter(Path("hub/one"), 1, "one"))
    assert one != adapters.identity(adapter(Path("hub/other"), 1, "one"))


def test_weights_of_the_same_shape_are_told_apart(tmp_path: Path) -> None:
    size = 1 << 20
    weights = bytearray(size)
    prints = set()
    for changed in (None, 0, (1 << 16) - 1, size // 2 - 1, size - 1):
        copy = bytearray(weights)
        if changed is not None:
            copy[changed] = 1
        (tmp_path / "model.safetensors").write_bytes(copy)
        prints.add(namespace._fingerprint(tmp_path))
    assert len(prints) == 5


def feature(identifier: str | None, offset: int = 3, length: int = 16) -> SimpleNamespace:
    place = SimpleNamespace(offset=offset, length=length)
    return SimpleNamespace(identifier=identifier, mm_position=place)


def test_inputs_beside_the_tokens_are_part_of_the_scope() -> None:
    scopes = [
        namespace.scope(SimpleNamespace(**given), epoch)
        for epoch in ("", "later")
        for given in (
            {},
            {"cache_salt": "s"},
            {"mm_features": [feature("a")]},
            {"mm_features": [feature("b")]},
            {"mm_features": [feature("a", offset=4)]},
        )
    ]
    assert None not in scopes
    assert len(set(scopes)) == len(scopes)
    again = namespace.scope(SimpleNamespace(mm_features=[feature("a")]), "")
    assert again in scopes


def test_inputs_that_nobody_can_name_are_not_shared() -> None:
    for given in ({"mm_features": [feature(None)]}, {"prompt_embeds": object()}):
        assert namespace.scope(SimpleNamespace(**given), "") is None
