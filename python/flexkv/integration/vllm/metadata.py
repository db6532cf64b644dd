"""Plans and reports in the wrappers that vLLM carries between scheduler and workers.

Knows nothing of what is in them.
"""

from __future__ import annotations

from vllm.distributed.kv_transfer.kv_connector.v1 import base

from flexkv.integration.vllm.plan import Plan, Report

_WorkerMetadata = getattr(base, "KVConnectorWorkerMetadata", object)


class FlexKVMetadata(base.KVConnectorMetadata):  # type: ignore[misc]
    """The plan of a step."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan


class FlexKVWorkerMetadata(_WorkerMetadata):  # type: ignore[misc,valid-type]
    """The report of a step."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def aggregate(self, other: FlexKVWorkerMetadata) -> FlexKVWorkerMetadata:
        """This report with that of another worker."""
        self.report.add(other.report)
        return self
