"""A tiny UMT5 on disk for tests: random weights in Wan's names, and a unigram tokeniser trained on a few sentences."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from edgewam.models.umt5 import Umt5, Umt5Config
from edgewam.models.umt5_encoder import save_text_encoder

SENTENCES = (
    "pick up the red cube with the left hand",
    "fold the towel and put it into the basket",
    "A video recorded from a robot's point of view executing the following instruction:",
    "hand it over to the right hand, then open the drawer & close it",
) * 4
SPECIAL = ("<pad>", "</s>", "<unk>")
CONFIG = Umt5Config(vocab_size=160, dim=16, attention_dim=24, ffn_dim=20, num_heads=2, num_layers=2)


def make_tokenizer(folder: Path) -> Path:
    """A folder with `tokenizer.json` that ends texts with </s>, as that of google/umt5-xxl does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(7)  # ours must not mind
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def make_network(seed: int = 0) -> Umt5:
    """Random bf16 weights, all of which matter."""
    net = Umt5(CONFIG).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        parameter.copy_(float("norm" in name) + 0.4 * torch.randn(parameter.shape, generator=generator))
    return net.bfloat16()


def make_artifact(out: Path, network: Umt5 | None = None) -> Path:
    """A text_encoder artifact of `make_network` and `make_tokenizer`."""
    network = network or make_network()
    tokenizer = make_tokenizer(out.parent / f"{out.name}.tokenizer")
    save_text_encoder(out, CONFIG, tokenizer, lambda folder: save_file(network.state_dict(), folder / "model.safetensors"))
    shutil.rmtree(tokenizer)
    return out
