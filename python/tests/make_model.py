"""Makes a Llama with random weights, to run real vLLM on: `python make_model.py DIRECTORY`.

Deterministic. Without options it is so small that a prompt takes no time; `--hidden` and `--layers`
make it larger. Its output projection is drawn wide, so that the best token is not a coin toss.
"""

import argparse
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


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = special + [f"w{index}" for index in range(VOCABULARY - len(special))]
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
