"""Where the tests find the package: installed, or beside them in the checkout. A model and a host
for those that run vLLM."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
if importlib.util.find_spec("flexkv") is None:
    sys.path.insert(0, str(Path(__file__).parents[1]))

import hosts
import make_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small model, kept in the cache directory if there is one."""
    cache = os.environ.get("FLEXKV_TEST_CACHE")
    path = Path(cache, "tiny-model") if cache else tmp_path_factory.mktemp("model")
    make_model.make(path)
    return str(path)


@pytest.fixture
def host(tmp_path: Path, model: str) -> Iterator[hosts.Host]:
    """A host whose node ends with the test."""
    host = hosts.Host(tmp_path, model)
    yield host
    host.end()
