"""Our methods against vLLM's connector interface, oldest and newest, read from their wheels.

Compares source texts, so that neither vLLM need be installed. Skipped without a package index.
"""

from __future__ import annotations

import ast
import urllib.error
from pathlib import Path

import pytest
import wheels

PACKAGE = "vllm/distributed/kv_transfer/kv_connector/v1"
OURS = Path(__file__).parents[1] / "flexkv" / "integration" / "vllm"
VERSIONS = ("0.10.1.1", "newest")


class Method:
    """The signature of a method."""

    def __init__(self, node: ast.FunctionDef) -> None:
        arguments = node.args
        self.names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)][1:]
        self.required = self.names[: len(self.names) - len(arguments.defaults)]
        self.keywords = arguments.kwarg is not None
        marks = {ast.unparse(mark) for mark in node.decorator_list}
        self.abstract = "abstractmethod" in marks
        self.kind = marks & {"classmethod", "staticmethod", "property"}


def source(version: str, name: str) -> str:
    try:
        return wheels.source(version, name)
    except (urllib.error.URLError, OSError) as error:
        pytest.skip(f"the package index cannot be reached: {error}")


def methods(text: str, name: str) -> dict[str, Method]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            functions = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            return {function.name: Method(function) for function in functions}
    raise AssertionError(f"there is no class {name}")


def ours(file: str, name: str) -> dict[str, Method]:
    return methods((OURS / file).read_text(), name)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_method_of_ours_can_be_called_as_the_interface_says(version: str) -> None:
    base = methods(source(version, f"{PACKAGE}/base.py"), "KVConnectorBase_V1")
    connector = ours("connector.py", "FlexKVConnector")
    assert len(base.keys() & connector.keys()) >= 10
    for name in base.keys() & connector.keys() - {"__init__"}:
        theirs, own = base[name], connector[name]
        assert own.names[: len(theirs.names)] == theirs.names, name
        assert set(own.required) <= set(theirs.names), name
        assert own.keywords == theirs.keywords, name
        assert own.kind == theirs.kind, name


@pytest.mark.parametrize("version", VERSIONS)
def test_every_abstract_method_is_there(version: str) -> None:
    base = methods(source(version, f"{PACKAGE}/base.py"), "KVConnectorBase_V1")
    abstract = {name for name, method in base.items() if method.abstract}
    assert len(abstract) == 7
    assert abstract <= ours("connector.py", "FlexKVConnector").keys()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_constructor_takes_what_the_interface_does(version: str) -> None:
    theirs = methods(source(version, f"{PACKAGE}/base.py"), "KVConnectorBase_V1")["__init__"]
    own = ours("connector.py", "FlexKVConnector")["__init__"]
    assert own.names[: len(theirs.names)] == theirs.names
    assert own.required == ["vllm_config", "role"]


def test_what_the_built_in_connector_calls_is_there() -> None:
    text = source("newest", f"{PACKAGE}/flexkv_connector.py")
    impl = ours("vllm_v1_adapter.py", "FlexKVConnectorV1Impl")
    calls = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "self._flexkv_connector"
    ]
    assert len(calls) >= 14
    for call in calls:
        own = impl[call.func.attr]
        assert len(own.required) <= len(call.args) <= len(own.names), call.func.attr
    assert "FlexKVConnectorV1Impl(vllm_config, role)" in text
    assert impl["__init__"].required == ["vllm_config", "role"]


def test_what_the_adapter_adds_is_not_forwarded_already() -> None:
    text = source("newest", f"{PACKAGE}/flexkv_connector.py")
    built_in = methods(text, "FlexKVConnectorV1")
    base = methods(source("newest", f"{PACKAGE}/base.py"), "KVConnectorBase_V1")
    added = ast.literal_eval(
        next(
            node.value
            for node in ast.parse((OURS / "vllm_v1_adapter.py").read_text()).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_ADDED"
        )
    )
    assert not set(added) & built_in.keys()
    assert set(added) <= base.keys()
    assert set(added) <= ours("vllm_v1_adapter.py", "FlexKVConnectorV1Impl").keys()
