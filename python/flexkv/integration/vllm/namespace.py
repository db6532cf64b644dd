"""What must be equal before two engines may share a block, read from vLLM's configuration.

Everything that decides what a block's bytes mean goes into the namespace, everything that separates
the requests of one deployment into their scope. Knows nothing of keys or nodes.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexkv.integration.vllm import adapters

_ISA_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
)

_SAMPLES = 16
_SAMPLE_BYTES = 4096
"""Of a weight file: two models of the same shape differ in one of these places."""


class Unsupported(RuntimeError):
    """A deployment whose blocks cannot be shared; the text says why."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The blocks of one deployment."""

    tokens_per_block: int
    layers: tuple[str, ...]
    """Names, in the order in which a block holds them."""
    layer_bytes: tuple[int, ...]
    tensor_parallel: int
    pipeline_parallel: int

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of one shard."""
        return sum(self.layer_bytes)

    @property
    def shards(self) -> list[tuple[int, int]]:
        """Tensor-parallel rank and pipeline stage of every worker, by its index."""
        return [
            (rank, stage)
            for stage in range(self.pipeline_parallel)
            for rank in range(self.tensor_parallel)
        ]


@dataclass(frozen=True, slots=True)
class Scope:
    """What separates requests within a deployment."""

    lora: str = ""
    salt: str = ""
    multimodal: tuple[bytes, ...] = ()


def geometry(vllm_config: Any, kv_cache_config: Any | None) -> Geometry:
    """The blocks that this deployment has."""
    parallel = vllm_config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise Unsupported(f"{name} above 1 spreads a block's tokens over workers")
    if getattr(parallel, "nnodes", 1) > 1:
        raise Unsupported("workers on other hosts cannot reach the scheduler's node")
    if kv_cache_config is None:
        tokens, layers = _from_model(vllm_config)
    else:
        tokens, layers = _from_cache(kv_cache_config)
    return Geometry(
        tokens_per_block=tokens,
        layers=tuple(layers),
        layer_bytes=tuple(layers.values()),
        tensor_parallel=parallel.tensor_parallel_size,
        pipeline_parallel=parallel.pipeline_parallel_size,
    )


def namespace(vllm_config: Any, shape: Geometry, model_id: str | None) -> dict[str, Any]:
    """The namespace of this deployment, as `flexkv._native.derive_root` takes it."""
    model = vllm_config.model_config
    return {
        "model": model_id or str(model.model),
        "revision": _revision(model),
        "dtype": _dtype(vllm_config),
        "engine_layout": _engine_layout(vllm_config),
        "tokens_per_block": shape.tokens_per_block,
        "layers": list(shape.layer_bytes),
        "tensor_parallel": shape.tensor_parallel,
        "pipeline_parallel": shape.pipeline_parallel,
    }


def scope(request: Any, epoch: str) -> Scope | None:
    """The scope of `request`, or none if its tokens do not tell its content.

    `epoch` separates what was computed before a reset of the cache from what comes after.
    """
    if getattr(request, "prompt_embeds", None) is not None or getattr(request, "resumable", False):
        return None
    lora = getattr(request, "lora_request", None)
    adapter = adapters.identity(lora) if lora is not None else ""
    salt = getattr(request, "cache_salt", None) or ""
    if epoch:
        salt = f"{epoch}\0{salt}"
    images = _multimodal(request)
    return None if images is None else Scope(lora=adapter, salt=salt, multimodal=images)


def _multimodal(request: Any) -> tuple[bytes, ...] | None:
    """Hash and place of every multimodal input; none if one has no hash."""
    features = getattr(request, "mm_features", None)
    if features is not None:
        places = [(getattr(f, "identifier", None), f.mm_position) for f in features]
    else:
        positions = getattr(request, "mm_positions", None) or ()
        hashes = getattr(request, "mm_hashes", None) or [None] * len(positions)
        places = list(zip(hashes, positions, strict=True))
    if any(not identifier for identifier, _ in places):
        return None
    return tuple(f"{at.offset}:{at.length}:{name}".encode() for name, at in places)


def _from_cache(kv_cache_config: Any) -> tuple[int, dict[str, int]]:
    """Tokens of a block, and bytes of a block of every layer."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise Unsupported(f"the KV cache has {len(groups)} groups of layers, not one")
    spec = groups[0].kv_cache_spec
    each = getattr(spec, "kv_cache_specs", None) or dict.fromkeys(groups[0].layer_names, spec)
    return spec.block_size, {name: each[name].page_size_bytes for name in groups[0].layer_names}


def _from_model(vllm_config: Any) -> tuple[int, dict[str, int]]:
    """The same for versions that tell a connector nothing of the KV cache."""
    from vllm.utils import get_kv_cache_torch_dtype

    model, cache = vllm_config.model_config, vllm_config.cache_config
    element = get_kv_cache_torch_dtype(cache.cache_dtype, model.dtype).itemsize
    heads = model.get_num_kv_heads(vllm_config.parallel_config)
    parts = 1 if getattr(model, "use_mla", False) else 2
    page = parts * cache.block_size * heads * model.get_head_size() * element
    count = model.get_num_layers(vllm_config.parallel_config)
    return cache.block_size, {f"layer {index}": page for index in range(count)}


def _dtype(vllm_config: Any) -> str:
    kept = str(vllm_config.cache_config.cache_dtype)
    return str(vllm_config.model_config.dtype) if kept == "auto" else kept


def _revision(model: Any) -> str:
    """Which weights: the revision asked for, or the one that was found, or what the files are."""
    found = getattr(getattr(model, "hf_config", None), "_commit_hash", None)
    named = model.revision or found or ""
    path = Path(str(model.model))
    return f"{named} {_fingerprint(path)}" if path.is_dir() else str(named)


def _fingerprint(directory: Path) -> str:
    """Configuration and weight files of a local model, with samples of the weights."""
    summary = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.name == "config.json":
            summary.update(path.read_bytes())
        elif path.suffix in (".safetensors", ".bin", ".pt", ".gguf"):
            size = path.stat().st_size
            summary.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                summary.update(file.read(1 << 16))
                for part in range(1, _SAMPLES + 1):
                    file.seek(max(0, size * part // _SAMPLES - _SAMPLE_BYTES))
                    summary.update(file.read(_SAMPLE_BYTES))
    return summary.hexdigest()[:32]


def _engine_layout(vllm_config: Any) -> str:
    """How this engine arranges the bytes of a block."""
    import vllm

    model, cache = vllm_config.model_config, vllm_config.cache_config
    parts = {
        "vllm": vllm.__version__,
        "device": _device(),
        "backend": _backend(vllm_config),
        "layout": _layout(),
        "quantization": getattr(model, "quantization", None),
        "overrides": getattr(model, "hf_overrides", None) or None,
        "scales": getattr(cache, "calculate_kv_scales", None),
    }
    return " ".join(f"{name}={value}" for name, value in parts.items())


def _device() -> str:
    """The processor, as far as attention kernels arrange blocks by it."""
    try:
        from vllm.platforms import current_platform

        if current_platform.device_type != "cpu":
            return f"{current_platform.device_type} {current_platform.get_device_name()}"
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except (ImportError, OSError):
        text = ""
    present = set(text.split())
    return "-".join([platform.machine(), *(flag for flag in _ISA_FLAGS if flag in present)])


def _backend(vllm_config: Any) -> str:
    chosen = getattr(getattr(vllm_config, "attention_config", None), "backend", None)
    if chosen is None:
        import vllm.envs as envs

        chosen = getattr(envs, "VLLM_ATTENTION_BACKEND", None)
    return str(getattr(chosen, "name", chosen))


def _layout() -> str:
    import vllm.envs as envs

    return str(getattr(envs, "VLLM_KV_CACHE_LAYOUT", None))
