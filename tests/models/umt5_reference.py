"""A tiny UMT5 encoder computed by transformers, stored in `tests/golden/umt5.safetensors` so that tests need no transformers.

`python3 -m tests.models.umt5_reference` (with transformers 5 installed) writes the file anew: random weights under Wan's
names, token ids, masks, and what `UMT5EncoderModel` makes of them in float32 and in bf16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgewam.models.umt5 import Umt5, Umt5Config

FILE = Path(__file__).parents[1] / "golden/umt5.safetensors"
# the attention width is not the model width; 150 tokens reach the last bucket in both directions
CONFIG = Umt5Config(vocab_size=50, dim=24, attention_dim=32, ffn_dim=40, num_heads=4, num_layers=2)
LENGTH, TOKENS = 150, (150, 11)
WAN_OF_HF = {
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.SelfAttention": "attn",
    "layer.0.layer_norm": "norm1",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
    "layer.1.layer_norm": "norm2",
    "encoder.block": "blocks",
    "encoder.final_layer_norm": "norm",
    "shared": "token_embedding",
}


def compute() -> dict[str, Tensor]:
    """Everything that the file holds, computed by transformers."""
    from transformers import UMT5Config, UMT5EncoderModel

    net = UMT5EncoderModel(
        UMT5Config(
            vocab_size=CONFIG.vocab_size, d_model=CONFIG.dim, d_kv=CONFIG.attention_dim // CONFIG.num_heads, d_ff=CONFIG.ffn_dim,
            num_layers=CONFIG.num_layers, num_heads=CONFIG.num_heads, feed_forward_proj="gated-gelu", dropout_rate=0.0,
            attn_implementation="eager",  # it rounds bf16 logits, as Wan's network does
        )
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        scale = 1.0 if parameter.shape[0] == CONFIG.vocab_size else 0.3
        torch.nn.init.normal_(parameter, float("norm" in name), scale, generator=generator)
    ids = torch.randint(3, CONFIG.vocab_size, (2, LENGTH), generator=generator)
    mask = torch.arange(LENGTH) < torch.tensor(TOKENS)[:, None]
    ids = torch.where(mask, ids, 0)
    weights = {_wan(name): parameter.detach().clone() for name, parameter in net.named_parameters()}
    with torch.inference_mode():
        exact = net(input_ids=ids, attention_mask=mask).last_hidden_state
        short = net.bfloat16()(input_ids=ids, attention_mask=mask).last_hidden_state
    return {f"w.{name}": w for name, w in weights.items()} | {"ids": ids, "mask": mask, "float32": exact, "bf16": short}


def _wan(name: str) -> str:
    for theirs, ours in WAN_OF_HF.items():
        name = name.replace(theirs, ours)
    return name


def stored() -> tuple[Umt5, dict[str, Any]]:
    """Our network with the stored weights, and the stored arrays."""
    arrays = load_file(FILE)
    net = Umt5(CONFIG).eval().requires_grad_(False)
    net.load_state_dict({name.removeprefix("w."): tensor for name, tensor in arrays.items() if name.startswith("w.")})
    return net, arrays


if __name__ == "__main__":
    save_file({name: tensor.clone().contiguous() for name, tensor in compute().items()}, FILE)
