"""Puts the two roles together from vLLM's configuration: settings, namespace, node, links.

Knows nothing of the methods through which vLLM calls them.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any

from flexkv import config as settings
from flexkv import node
from flexkv.integration.vllm import compat, namespace
from flexkv.integration.vllm.events import Announcer
from flexkv.integration.vllm.memory import regions
from flexkv.integration.vllm.plan import Plan
from flexkv.integration.vllm.requests import Keys
from flexkv.integration.vllm.scheduler import Behaviour, SchedulerSide
from flexkv.integration.vllm.worker import WorkerSide
from flexkv.link import Link

logger = logging.getLogger("vllm.flexkv")


class SchedulerRole:
    """The scheduler side with its link to the node."""

    def __init__(self, vllm_config: Any, kv_cache_config: Any | None) -> None:
        from flexkv import _native

        self._native: Any = _native
        self._config = config = settings.load()
        for note in config.notes:
            logger.warning("FlexKV: %s", note)
        self._shape = shape = namespace.geometry(vllm_config, kv_cache_config)
        self._namespace = namespace.namespace(vllm_config, shape, config.model_id)
        self._secret = node.cluster_secret(config)
        self._epoch = ""
        name, _ = self._root(0, 0, namespace.Scope())
        self.deployment = node.Deployment(name, shape.block_bytes)
        logger.info("FlexKV: namespace %s is %s", name, self._namespace)
        compat.recompute_failed_loads(vllm_config)
        self.link = Link(lambda: attach(config, self.deployment), logger, "the scheduler")
        events = getattr(vllm_config, "kv_events_config", None)
        announcer = Announcer(
            bool(events and events.enable_kv_cache_events), shape.tokens_per_block
        )
        self.side = SchedulerSide(self.link, self._keys_of, self._behaviour(vllm_config), announcer)
        self.link.wait(config.attach_timeout_s)

    def stamp(self, plan: Plan) -> Plan:
        """The plan, with the deployment it belongs to."""
        plan.namespace, plan.block_bytes = self.deployment.namespace, self.deployment.block_bytes
        return plan

    def reset(self) -> bool:
        """From now on nothing that was computed so far is found by this engine; False if a request
        is just loading some of it.

        What it computes from now on is found by no other engine: whoever resets one (as new
        weights need) knows what has changed, and the cache does not.
        """
        self._epoch = secrets.token_hex(8)
        return self.side.reset()

    def close(self) -> None:
        """Gives back what the node holds for this engine."""
        self.side.close()
        self.link.close()

    def _behaviour(self, vllm_config: Any) -> Behaviour:
        transfer = vllm_config.kv_transfer_config
        return Behaviour(
            tokens_per_block=self._shape.tokens_per_block,
            fetch_deadline_s=self._config.fetch_deadline_s,
            loads=transfer.is_kv_consumer,
            saves=transfer.is_kv_producer,
            answers_later=compat.can_answer_later(),
            worker_reports=compat.reports_worker_metadata(),
            keeps_aborted=compat.keeps_blocks_of_aborted_loads(),
            workers=len(self._shape.shards),
            recompute_tokens_per_second=self._config.recompute_tokens_per_second,
        )

    def _root(self, rank: int, stage: int, scope: namespace.Scope) -> tuple[str, bytes]:
        name, root = self._native.derive_root(
            self._namespace,
            self._secret,
            rank,
            stage,
            scope.lora,
            scope.salt,
            list(scope.multimodal),
        )
        return name, root

    def _keys_of(self, request: Any) -> Keys | None:
        scope = namespace.scope(request, self._epoch)
        if scope is None:
            return None
        size = self._shape.tokens_per_block
        chains = [
            self._native.KeyChain(self._root(rank, stage, scope)[1], self._secret, size)
            for rank, stage in self._shape.shards
        ]
        return Keys(chains, size)


class WorkerRole:
    """The worker side with its link to the node, which the first plan tells it."""

    def __init__(self, vllm_config: Any, kv_cache_config: Any | None) -> None:
        self._config = settings.load()
        self._num_blocks = getattr(kv_cache_config, "num_blocks", None)
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._caches: dict[str, Any] = {}
        self._link: Link | None = None
        self.side = WorkerSide(self._make_copier, _shard(vllm_config))

    def register(self, caches: dict[str, Any]) -> None:
        """Notes where the KV cache is."""
        self.side.close()
        self._caches = dict(caches)

    def unregister(self) -> None:
        """The KV cache is about to go: ends the copies."""
        self.side.close()
        self._caches = {}

    def close(self) -> None:
        """Ends the copies and the attachment."""
        self.side.close()
        if self._link is not None:
            self._link.close()

    def _make_copier(self, plan: Plan) -> tuple[Any, Any] | None:
        from flexkv import _native

        shape = namespace.geometry(self._vllm_config, self._kv_cache_config)
        # Some versions know the number of blocks only after the caches are registered.
        blocks = self._num_blocks or self._vllm_config.cache_config.num_gpu_blocks
        parts = regions(self._caches, shape.layers, blocks)
        held = sum(size for _, _, size, _ in parts)
        if held != plan.block_bytes:
            raise namespace.Unsupported(
                f"a block of this worker has {held} bytes, one of the scheduler {plan.block_bytes}"
            )
        attachment = self._attachment(plan)
        if attachment is None:
            return None
        copier = _native.Copier(attachment, parts, self._config.copy_threads)
        return copier, attachment

    def _attachment(self, plan: Plan) -> Any | None:
        """The attachment to the plan's node. The first time it may take a moment."""
        if self._link is not None:
            return self._link.get()
        deployment = node.Deployment(plan.namespace, plan.block_bytes)
        self._link = Link(lambda: attach(self._config, deployment), logger, "a worker")
        return self._link.wait(self._config.attach_timeout_s)


def attach(config: settings.Config, deployment: node.Deployment) -> Any:
    """An attachment to the node of `deployment`, which is started if there is none."""
    from flexkv import _native

    path = node.ensure(config, deployment)
    attachment = _native.Attachment(str(path), config.attach_timeout_s)
    if attachment.namespace != deployment.namespace:
        raise node.NodeStartError(
            f"the node at {path} serves {attachment.namespace}, not {deployment.namespace}"
        )
    if attachment.block_bytes != deployment.block_bytes:
        raise node.NodeStartError(
            f"the node at {path} has blocks of {attachment.block_bytes} bytes, "
            f"not {deployment.block_bytes}"
        )
    return attachment


def _shard(vllm_config: Any) -> int:
    """This worker's place among the shards of its deployment, see `Geometry.shards`."""
    parallel = vllm_config.parallel_config
    try:
        from vllm.distributed.parallel_state import get_pp_group, get_tp_group

        rank, stage = get_tp_group().rank_in_group, get_pp_group().rank_in_group
    except (ImportError, AssertionError):
        stage, rank = divmod(parallel.rank, parallel.tensor_parallel_size)
    return int(stage * parallel.tensor_parallel_size + rank)
