"""AHA-WAM inference computed the way the public release computes it, step by step: the `upstream_eager` of our ratios.

Nothing that the release recomputes is saved here: text embedding and cross-attention keys and values in every denoise step,
a timestep per planner token, boolean masks given to the attention, rotations in float64, a VAE with three-dimensional
convolutions, a memory joined by copies.  It holds no weights of its own: it runs on the parameters of the reference model.
What cannot be known from outside (the release builds its masks with host synchronisations) is left out, in its favour.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgewam.flow.schedule import step_table
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.dit_block import Attention, DitBlock, KeyValue, layer_norm
from edgewam.models.rope import axis_angles, video_angles
from edgewam.models.wan_dit import DitStack
from edgewam.models.wan_vae import WanVae
from edgewam.models.wan_vae_blocks import CausalConv3d

Mark = Callable[[str], None]  # called with a stage's name when its work has been issued
Words = Tensor | Sequence[KeyValue]  # rows of text, or what a subclass has made of them
Angles = tuple[Tensor, Tensor]  # float64 cos and sin [tokens, head_dim / 2]


def no_mark(_: str) -> None:
    """Mark nothing."""


class UpstreamEager:
    """One policy: `refresh` is a planner refresh, `act` one action chunk.  Weights and latents have one dtype.

    The VAE given is taken over: its encoder is set to three-dimensional convolutions.
    `memory` holds the context of up to `memory_slots` refreshes, per layer one [1, slots * tokens, A] pair.
    """

    def __init__(self, model: AhaWam, vae: WanVae) -> None:
        self.model = model
        self.vae = three_dimensional(vae)
        self.dtype = model.proprio_encoder.weight.dtype
        self.device = model.proprio_encoder.weight.device
        self.memory: list[KeyValue] | None = None
        self.context: list[KeyValue] = []

    @torch.no_grad()
    def refresh(self, image: Tensor, text: Tensor, frame_id: int, mark: Mark = no_mark) -> None:
        """Planner refresh from a composed image uint8 [3, H, W] and text rows [1, Lt, Dt] at temporal position `frame_id`."""
        image = image.to(self.device)
        mark("upload")
        latent = self.encode(image)
        mark("vae")
        self.context = self.prefill(latent, text, frame_id)
        mark("prefill")
        self.remember(self.context)
        mark("memory")

    @torch.no_grad()
    def act(
        self, image: Tensor, proprio: Tensor, text: Tensor, noise: Tensor, chunk: int, steps: int, mark: Mark = no_mark
    ) -> Tensor:
        """Normalised actions [T, action_dim] float32 on the host.

        image uint8 [3, H, W] and normalised proprio [1, P] come from the host; noise [1, T, action_dim] is the chunk's own.
        """
        image, state = image.to(self.device), proprio.to(self.device, self.dtype)
        x = noise.to(self.device, self.dtype)
        mark("upload")
        actions = self.sample(image, state, text, x, chunk, self.table(steps), mark).cpu()
        mark("download")
        return actions

    def table(self, steps: int) -> tuple[Tensor, Tensor]:
        """Timesteps and deltas [steps] on the device."""
        table = step_table(steps, self.model.config.shift, "bf16" if self.dtype == torch.bfloat16 else "float32")
        return table.timesteps.to(self.device, self.dtype), table.deltas.to(self.device, self.dtype)

    @torch.no_grad()
    def sample(
        self, image: Tensor, state: Tensor, text: Tensor, noise: Tensor, chunk: int, table: tuple[Tensor, Tensor],
        mark: Mark = no_mark,
    ) -> Tensor:  # fmt: skip
        """`act` with everything on the device; normalised actions [T, action_dim] float32."""
        latent = self.encode(image)[:, :, 0]
        mark("vae")
        queries = self.observe(latent)
        mark("observation")
        routed = self.model.editor(self.context, queries)
        mark("editor")
        words = self.words(text, state)
        mark("words")
        x = noise
        for timestep, delta in zip(*table, strict=True):
            x = x + delta * self.velocity(x, timestep[None], chunk, routed, words)
            mark("denoise")
        return x[0].float()

    def encode(self, image: Tensor) -> Tensor:
        """Latent [1, Cz, 1, h, w] of an image uint8 [3, H, W]."""
        return self.vae.encode((image[None].to(self.dtype) * (2 / 255) - 1)[:, :, None])

    def observe(self, latent: Tensor) -> Tensor:
        """Routing queries of a latent [1, Cz, h, w]."""
        return self.model.chunk_obs_query_encoder(self.model.visual_tokens(latent))

    def words(self, text: Tensor, state: Tensor) -> Words:
        """What the executor's cross-attention reads: here the rows themselves, text and the state's token."""
        return torch.cat([text, self.model.proprio_encoder(state)[:, None]], dim=1)

    def word_keys(self, stack: DitStack, words: Words) -> Iterable[KeyValue]:
        """Cross-attention keys and values per layer, made from the rows when each layer needs them."""
        assert isinstance(words, Tensor)
        embedded = stack.text_embedding(words)
        return ((block.cross_attn.norm_k(block.cross_attn.k(embedded)), block.cross_attn.v(embedded)) for block in stack.blocks)  # type: ignore[union-attr,operator]

    @torch.no_grad()
    def velocity(self, actions: Tensor, timestep: Tensor, chunk: int, routed: Sequence[KeyValue], words: Words) -> Tensor:
        """One denoise step: velocity of actions [1, T, action_dim] at timestep [1]."""
        executor, config = self.model.executor, self.model.config
        x = executor.action_encoder(actions) + self.model.branch
        _, time = executor.embed_time(timestep[:, None])
        positions = chunk * config.chunk_size + torch.arange(actions.shape[1], device=actions.device)
        angles = _cos_sin(axis_angles(positions, config.head_dim, config.rope_theta))
        self_mask = torch.ones(x.shape[1], routed[0][0].shape[1] + x.shape[1], dtype=torch.bool, device=x.device)
        keys = self.word_keys(executor, words)
        for block, before, layer_words in zip(executor.blocks, routed, keys, strict=True):
            x, _ = _block(block, x, layer_words, time, angles, before, self_mask)
        return executor.head(x)

    def prefill(self, latent: Tensor, text: Words, frame_id: int) -> list[KeyValue]:
        """Keys and values per layer of a latent [1, Cz, 1, h, w]."""
        planner, config = self.model.planner, self.model.config
        x = planner.patchify(latent)
        time = _time_of_clean_tokens(planner, x)
        ids = torch.tensor([frame_id], device=x.device)
        angles = _cos_sin(video_angles(ids, config.grid, config.rope_dims, config.rope_theta))
        context = []
        for layer, (block, words) in enumerate(zip(planner.blocks, self.word_keys(planner, text), strict=True)):
            before = self.memory[layer] if self.memory is not None else None
            x, own = _block(block, x, words, time, angles, before, None)
            context.append(own)
        return context

    def remember(self, context: Sequence[KeyValue]) -> None:
        """Join the context of a refresh to the memory, and let the oldest go."""
        keep = self.model.config.memory_slots * self.model.config.frame_tokens
        if self.memory is None:
            self.memory = [(k.clone(), v.clone()) for k, v in context]
        else:
            pairs = zip(self.memory, context, strict=True)
            self.memory = [tuple(torch.cat([a, b], 1)[:, -keep:] for a, b in zip(*p, strict=True)) for p in pairs]  # type: ignore[misc]


def three_dimensional(vae: WanVae) -> WanVae:
    """The VAE with every causal convolution over time even for one frame, where all earlier taps meet padding."""
    for module in vae.modules():
        if isinstance(module, CausalConv3d):
            module.forward = functools.partial(_convolve, module)  # type: ignore[method-assign]
    return vae


def _convolve(layer: CausalConv3d, x: Tensor) -> Tensor:
    return F.conv3d(F.pad(x, (0, 0, 0, 0, layer.front, 0)), layer.weight, layer.bias, padding=layer.padding)


def _time_of_clean_tokens(stack: DitStack, x: Tensor) -> Tensor:
    """Modulations [1, S, 6, D] of timestep 0, computed for every token alone."""
    return stack.embed_time(torch.zeros(1, x.shape[1], device=x.device, dtype=x.dtype))[1]


def _block(
    block: DitBlock, x: Tensor, words: KeyValue, time: Tensor, angles: Angles, before: KeyValue | None, mask: Tensor | None
) -> tuple[Tensor, KeyValue]:
    """One layer over tokens x [1, S, D] with keys and values of the text; keys and values of `before` come first."""
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulations(time)
    attention, cross = block.self_attn, block.cross_attn
    h = layer_norm(x) * (1 + scale1) + shift1
    query = _rotate(attention.norm_q(attention.q(h)), angles, attention.num_heads)
    own = (_rotate(attention.norm_k(attention.k(h)), angles, attention.num_heads), attention.v(h))
    seen = own if before is None else (torch.cat([before[0], own[0]], 1), torch.cat([before[1], own[1]], 1))
    x = x + gate1 * _attend(attention, query, seen, mask)
    all_words = torch.ones(x.shape[1], words[0].shape[1], dtype=torch.bool, device=x.device)
    x = x + _attend(cross, cross.norm_q(cross.q(block.norm3(x))), words, all_words)
    x = x + gate2 * block.ffn(layer_norm(x) * (1 + scale2) + shift2)
    return x, own


def _attend(attention: Attention, query: Tensor, seen: KeyValue, mask: Tensor | None) -> Tensor:
    """Attention of [1, S, A] through PyTorch's fused entry point, and the projection back."""
    q, k, v = (t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for t in (query, *seen))
    return attention.o(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2))


def _cos_sin(angles: Tensor) -> Angles:
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, angles: Angles, num_heads: int) -> Tensor:
    """Interleaved pairs of [1, S, A] turned in float64, result in the dtype of x."""
    cos, sin = (part[:, None] for part in angles)
    even, odd = x.float().unflatten(-1, (num_heads, -1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.flatten(-3).to(x.dtype)
