"""The adapter to vLLM, from v0.10.1.1 on.

`vllm_v1_adapter` is what vLLM's built-in `FlexKVConnectorV1` imports; `connector` is the same as a
connector of its own. Both are thin: what happens is in `scheduler` and `worker`.
"""
