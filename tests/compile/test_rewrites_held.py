"""The exact rewrites that stages hold from the start, each against the plain form that it replaced, on golden sizes."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu.upstream import UpstreamEager
from edgewam.cli._shipped import shipped
from edgewam.compile.exporting import as_module, example_inputs
from edgewam.compile.rewrites import REWRITES
from edgewam.core.observation import CLAMP
from edgewam.models import wam_stages
from edgewam.models.dit_block import attend
from edgewam.models.planner_stage import modulation_rows
from edgewam.models.stage_layers import QueryKeyValue, Turn, attention
from edgewam.models.text import pack_context
from edgewam.models.wan_vae_image import image_encoder
from edgewam.recipes.deploy import compile_plan
from tests.compile.rewritten import deviation, lively_model, stages_of
from tests.contracts.test_family import STATES
from tests.models import aha_wam_golden as golden

CONFIG = golden.config()
NUM_WORDS = 3


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return lively_model()


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def prompt():
    """Text rows [L, Dt] with zero padding behind the words."""
    rows = torch.zeros(CONFIG.text_len, CONFIG.text_dim)
    rows[:NUM_WORDS] = draw(NUM_WORDS, CONFIG.text_dim)
    return rows


def packed(bucket):
    return tuple(torch.from_numpy(part) for part in pack_context(prompt().numpy(), bucket))


def is_held(name, found, expected):
    row = REWRITES[name]
    assert row.function is None
    return deviation({"it": found}, {"it": expected}) <= row.tolerance


@torch.no_grad()
def test_text_once_gives_the_keys_and_values_that_every_step_recomputed(model):
    stages, proprio = stages_of(model, CONFIG.text_len), draw(CONFIG.proprio_dim)
    _, text, _ = stages["text"].function(*packed(CONFIG.text_len))
    (cross,) = stages["state"].function(torch.from_numpy(STATES.backward(proprio.numpy())), text)
    plain = model.executor_text(prompt()[None], proprio.clamp(-CLAMP, CLAMP)[None])
    expected = torch.stack([torch.cat(kv) for kv in plain])
    rows = [*range(NUM_WORDS), -1]  # the words, and the state token; what lies between is the padding, packed otherwise
    expected_rows = [*range(NUM_WORDS), CONFIG.text_len]
    assert is_held("text_once", cross[:, :, rows], expected[:, :, expected_rows])


@torch.no_grad()
def test_one_weighted_key_attends_like_all_the_padding_rows(model):
    queries, rows = draw(5, CONFIG.attention_dim), prompt()
    block = model.executor.blocks[0].cross_attn
    k, v = block.key_value(model.executor.text_embedding(rows[None]))
    expected = attend(queries[None], k, v, CONFIG.num_heads)[0]
    stage = stages_of(model, NUM_WORDS + 1)["text"].function
    _, text, bias = stage(*packed(NUM_WORDS + 1))
    scaled = queries * CONFIG.head_dim**-0.5
    assert is_held("pad_collapse", attention(scaled, *text[0], CONFIG.num_heads, bias[:-1]), expected)
    assert not is_held("pad_collapse", attention(scaled, *text[0], CONFIG.num_heads, bias[:-1].clamp(max=0)), expected)


@torch.no_grad()
def test_table_rows_are_the_modulations_of_each_step(model):
    timesteps = torch.tensor([1000.0, 832.0, 0.0])
    rows = modulation_rows(model.executor, timesteps)
    for row, timestep in zip(rows, timesteps, strict=True):
        _, time = model.executor.embed_time(timestep[None, None])
        plain = torch.stack([torch.stack(block.modulations(time))[:, 0, 0] for block in model.executor.blocks])
        plain[:, (1, 4)] += 1
        assert is_held("time_tables", row, plain)


@torch.no_grad()
def test_the_flat_image_encoder_gives_the_latent_of_three_dimensional_convolutions(model):
    image = torch.randint(0, 256, (3, CONFIG.image_height, CONFIG.image_width), generator=torch.Generator().manual_seed(1))
    vae = UpstreamEager(model, golden.read_vae()).vae
    expected = vae.encode(golden.scaled(image)[None, :, None])[:, :, 0]
    assert is_held("image_vae_2d", image_encoder(golden.vae())(image.to(torch.uint8).permute(1, 2, 0)), expected)


@torch.no_grad()
def test_merged_projections_give_what_single_ones_give(model):
    attn, x = model.executor.blocks[0].self_attn, draw(CONFIG.chunk_size, CONFIG.action_hidden_dim)
    table = model.action_rope(torch.arange(CONFIG.chunk_size))
    q, (k, v) = QueryKeyValue(attn)(x, Turn.prepare(*table))
    plain_k, plain_v = attn.key_value(x[None], table)
    expected = attn.query(x[None], table)[0] * CONFIG.head_dim**-0.5
    assert is_held("merged_qkv", torch.stack([q, k, v]), torch.stack([expected, plain_k[0], plain_v[0]]))


@torch.no_grad()
def test_a_mask_of_all_true_changes_no_bit(model):
    q, k, v = (draw(n, CONFIG.attention_dim) for n in (CONFIG.chunk_size, 21, 22))
    v = v[:21]
    zeros = torch.zeros(CONFIG.chunk_size, 21)
    zeros = zeros.masked_fill(~torch.ones_like(zeros, dtype=torch.bool), -torch.inf)  # as PyTorch turns a mask into a bias
    masked = attend(q[None], k[None], v[None], CONFIG.num_heads, zeros)
    assert is_held("no_masks", attend(q[None], k[None], v[None], CONFIG.num_heads), masked)
    fused = (t.unflatten(-1, (CONFIG.num_heads, -1)).transpose(0, 1) for t in (q, k, v))
    released = F.scaled_dot_product_attention(*fused, attn_mask=torch.ones_like(zeros, dtype=torch.bool))
    assert deviation({"it": masked[0]}, {"it": released.transpose(0, 1).flatten(1)}) <= REWRITES["merged_qkv"].tolerance


def added_to_logits(stage):
    """Of each softmax of a stage's exported graph: names of the inputs that what is added to its product comes from."""
    graph = torch.export.export(as_module(stage), example_inputs(stage), strict=False).graph
    found = []
    for softmax in (node for node in graph.nodes if node.op == "call_function" and "softmax" in str(node.target)):
        node, addends = softmax.args[0], []
        while "matmul" not in str(node.target) and "bmm" not in str(node.target):
            kind = str(node.target).split(".")[1]
            assert kind in ("to", "_to_copy", "add"), f"{node.target} between a product and its softmax"
            addends += [] if kind != "add" else [sorted(origins(node.args[1]))]
            node = node.args[0]
        found.append(addends)
    return found


def origins(node):
    seen, left = set(), [node]
    while left:
        if (now := left.pop()) not in seen:
            seen.add(now)
            left += now.all_input_nodes
    return {now.name for now in seen if now.op == "placeholder"}


@torch.no_grad()
def test_shipped_stages_add_nothing_to_logits_but_the_text_bias(monkeypatch):
    stages = compile_plan(shipped("student"), "eager").stages
    own, text = [], [["cross_bias"]]
    layers = len(stages["denoise"].function.qkv)
    assert layers > 0 and added_to_logits(stages["denoise"]) == [own, text] * layers
    router = added_to_logits(stages["router"])
    assert router and not any(router)

    def masked(q, k, v, num_heads, bias=None):
        return attention(q, k, v, num_heads, torch.zeros_like(k[:, 0]) if bias is None else bias)

    monkeypatch.setattr(wam_stages, "attention", masked)
    assert [] not in added_to_logits(stages["denoise"])[::2]


@torch.no_grad()
def test_the_planners_context_does_not_change_when_its_tail_is_left_out(model):
    latents = draw(1, CONFIG.latent_dim, 1, CONFIG.latent_height, CONFIG.latent_width)
    table = model.video_rope(torch.tensor([3]))
    text = model.planner.text_key_values(prompt()[None])
    _, whole = model.planner.velocity(latents, torch.zeros(1, 1), table, text)
    short = model.planner.context(latents, table, text)
    for found, expected in zip(short, whole, strict=True):
        assert is_held("planner_tail", torch.cat(found), torch.cat(expected))


def test_every_held_rewrite_has_a_test_here():
    tested = re.findall(r'is_held\("(\w+)"', Path(__file__).read_text())
    assert set(tested) == {name for name, row in REWRITES.items() if row.function is None}
