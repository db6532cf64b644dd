"""One vLLM engine in this process: reads jobs as JSON from a file, prints results as a JSON line.

A process of its own per engine, because an engine cannot be taken down within one. Each job is
`{"tokens": [...], "max_tokens": N}`, perhaps with a `salt`, the directory of a `lora` or the seed
of an `image`; results tell the tokens and where the prompt's KV came from. What is more than jobs
after each other is in `scripts`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

# Before vLLM is imported; a CPU engine with nothing compiled.
for name, value in {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
}.items():
    os.environ.setdefault(name, value)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def run(spec: dict) -> dict:
    """Runs the jobs of `spec` one batch after the other, or the script that it names."""
    engine = make(spec)
    if spec.get("script"):
        import scripts

        answer = getattr(scripts, spec["script"])(engine, spec["batches"])
    else:
        results = []
        for batch in spec["batches"]:
            results.append(generate(engine, batch))
            time.sleep(spec.get("pause", 0.3))
        answer = {"results": results}
    return answer | {"metrics": metrics(engine)}


def make(spec: dict) -> Any:
    """The engine that `spec` describes."""
    from vllm import LLM
    from vllm.config import KVEventsConfig, KVTransferConfig

    options = dict(spec.get("engine", {}))
    if options.get("kv_events_config"):
        options["kv_events_config"] = KVEventsConfig(**options["kv_events_config"])
    if spec.get("connector"):
        options["kv_transfer_config"] = KVTransferConfig(**spec["connector"])
    return LLM(
        **{
            "model": spec["model"],
            "enforce_eager": True,
            "max_model_len": 4096,
            "max_num_seqs": 16,
            "disable_log_stats": False,
            **options,
        }
    )


def generate(engine: Any, batch: list[dict]) -> list[dict]:
    """The answers to jobs that are asked at once."""
    began = time.monotonic()
    outputs = engine.generate(
        [prompt(job) for job in batch],
        [sampling(job) for job in batch],
        lora_request=[lora(job) for job in batch],
        use_tqdm=False,
    )
    answers = [
        {
            "tokens": list(output.outputs[0].token_ids),
            "cached": output.num_cached_tokens,
            "told": output.kv_transfer_params,
            "prefill": [output.metrics.scheduled_ts, output.metrics.first_token_ts],
        }
        for output in outputs
    ]
    answers[0]["seconds"] = time.monotonic() - began
    return answers


def prompt(job: dict) -> dict[str, Any]:
    """What is asked."""
    given: dict[str, Any] = {"prompt_token_ids": job["tokens"]}
    if job.get("salt"):
        given["cache_salt"] = job["salt"]
    if job.get("image") is not None:
        given["multi_modal_data"] = {"image": picture(job["image"])}
    return given


def sampling(job: dict) -> Any:
    """How it is answered: always the same way."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=job.get("max_tokens", 16))


def lora(job: dict) -> Any | None:
    """The adapter, which is known by its directory."""
    if not job.get("lora"):
        return None
    from vllm.lora.request import LoRARequest

    path = job["lora"]
    number = _ADAPTERS.setdefault(path, len(_ADAPTERS) + 1)
    return LoRARequest(job.get("lora_name", f"adapter-{number}"), number, path)


_ADAPTERS: dict[str, int] = {}


def picture(seed: int) -> Any:
    """An image of noise."""
    import numpy
    from PIL import Image

    noise = numpy.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=numpy.uint8)
    return Image.fromarray(noise)


def metrics(engine: Any) -> dict[str, float]:
    """Counters and gauges of the connector, and vLLM's counters of what came from it."""
    return {
        metric.name: metric.value
        for metric in engine.get_metrics()
        if hasattr(metric, "value") and ("flexkv" in metric.name or "external" in metric.name)
    }


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        answer = run(json.load(file))
    print("RESULT " + json.dumps(answer), flush=True)
