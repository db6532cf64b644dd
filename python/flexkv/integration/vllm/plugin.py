"""What vLLM loads in each of its processes, by the entry point `vllm.general_plugins`.

It makes the connector known by name. Knows nothing of what the connector does.
"""

from __future__ import annotations

_MODULE = "flexkv.integration.vllm.connector"


def register() -> None:
    """Registers `FlexKVConnector`, and completes the built-in `FlexKVConnectorV1`.

    The built-in one answers for its class alone in the process that serves `/metrics`, and has no
    metrics; ours has the same methods and these.
    """
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    for name in ("FlexKVConnector", "FlexKVConnectorV1"):
        KVConnectorFactory._registry.pop(name, None)
        KVConnectorFactory.register_connector(name, _MODULE, "FlexKVConnector")
