"""One vLLM engine in this process: reads jobs as JSON from a file, prints results as a JSON line.

A process of its own per engine, because an engine cannot be taken down within one. Each job is
`{"tokens": [...], "max_tokens": N}`; results tell the tokens and where the prompt's KV came from.
"""

import json
import os
import sys
import time

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
    """Runs the jobs of `spec` one after the other."""
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    options = dict(spec.get("engine", {}))
    if spec.get("connector"):
        options["kv_transfer_config"] = KVTransferConfig(**spec["connector"])
    engine = LLM(
        model=spec["model"],
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=16,
        disable_log_stats=False,
        **options,
    )
    results = []
    for batch in spec["batches"]:
        began = time.monotonic()
        outputs = engine.generate(
            [{"prompt_token_ids": job["tokens"]} for job in batch],
            [SamplingParams(temperature=0, max_tokens=job.get("max_tokens", 16)) for job in batch],
            use_tqdm=False,
        )
        results.append(
            [
                {
                    "tokens": list(output.outputs[0].token_ids),
                    "cached": output.num_cached_tokens,
                    "told": output.kv_transfer_params,
                }
                for output in outputs
            ]
        )
        results[-1][0]["seconds"] = time.monotonic() - began
        time.sleep(spec.get("pause", 0.3))
    metrics = {
        metric.name: metric.value
        for metric in engine.get_metrics()
        if hasattr(metric, "value") and ("flexkv" in metric.name or "external" in metric.name)
    }
    return {"results": results, "metrics": metrics}


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        answer = run(json.load(file))
    print("RESULT " + json.dumps(answer), flush=True)
