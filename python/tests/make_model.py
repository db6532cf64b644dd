"""Makes a Llama with random weights, to run real vLLM on: `python make_model.py DIRECTORY`.

Deterministic. Without options it is so small that a prompt takes no time; `--hidden` and `--layers`
make it larger. Its output projection is drawn wide, so that the best token is not a coin toss.
"""

import argparse
import json
from pathlib import Path

VOCABULARY = 2048


def make(directory: Path, *, hidden: int = 256, layers: int = 4, dtype: str = "bfloat16") -> None:
    """Writes model and tokenizer to `directory`, unless they are there."""
    if (directory / "tokenizer.json").exists():
        return
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.5)
    model.save_pretrained(directory)
    _write_tokenizer(directory)


def make_with_images(directory: Path) -> None:
    """Writes a small BLIP-2, which puts images before the text, as 16 tokens each.

    One of the few such models that vLLM runs without torchvision.
    """
    import torch
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
    )

    torch.manual_seed(0)
    common = {"num_hidden_layers": 2, "num_attention_heads": 2}
    small = {"hidden_size": 64, "intermediate_size": 128, **common}
    text = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        word_embed_proj_dim=128,
        ffn_dim=256,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
        **common,
    )
    config = Blip2Config(
        vision_config=Blip2VisionConfig(image_size=32, patch_size=8, **small),
        qformer_config=Blip2QFormerConfig(
            vocab_size=VOCABULARY, encoder_hidden_size=64, cross_attention_frequency=1, **small
        ),
        text_config=text,
        num_query_tokens=16,
        image_token_index=VOCABULARY - 1,
    )
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        model.language_model.lm_head.weight.normal_(0, 0.5)
    model.save_pretrained(directory)
    _write_tokenizer(directory, last="<image>")
    half = [0.5, 0.5, 0.5]
    image = {
        "image_processor_type": "BlipImageProcessorPil",
        "processor_class": "Blip2Processor",
        "size": {"height": 32, "width": 32},
        "image_mean": half,
        "image_std": half,
    }
    processor = {"processor_class": "Blip2Processor", "num_query_tokens": 16}
    (directory / "preprocessor_config.json").write_text(json.dumps(image))
    (directory / "processor_config.json").write_text(json.dumps(processor))


def adapter(directory: Path, *, seed: int, hidden: int = 256, layers: int = 4) -> Path:
    """Writes a LoRA adapter for the small model, with weights drawn from `seed`."""
    import torch
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(seed)
    rank, weights = 8, {}
    for layer in range(layers):
        for name, rows in (("q_proj", hidden), ("v_proj", hidden // 2)):
            part = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{part}.lora_A.weight"] = 0.2 * torch.randn(rank, hidden, generator=draw)
            weights[f"{part}.lora_B.weight"] = 0.2 * torch.randn(rows, rank, generator=draw)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def _write_tokenizer(directory: Path, last: str | None = None) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = _SPECIAL + [f"w{index}" for index in range(VOCABULARY - len(_SPECIAL))]
    words[-1] = last or words[-1]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    ).save_pretrained(directory)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("directory", type=Path)
    options.add_argument("--hidden", type=int, default=256, help="a multiple of 128")
    options.add_argument("--layers", type=int, default=4)
    asked = options.parse_args()
    make(asked.directory, hidden=asked.hidden, layers=asked.layers)
