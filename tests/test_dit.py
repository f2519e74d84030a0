"Diffusion transformer: shapes, initialisation, bad input, checkpoints."
import argparse
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffprune.core.checks import read_state_dict
from diffprune.models.dit import (
    DIT_MODELS,
    DiT,
    LabelEmbedder,
    dit_model,
    label_drop_mask,
    load_checkpoint,
    sincos_pos_embed,
    unpatchify,
)

SMALL = dict(input_size=8, patch_size=2, in_channels=3, hidden_size=24, depth=2, num_heads=2, num_classes=5)

def randomised(seed=0, **kw):
    "A small model without the zeros of its initialisation, which would hide everything."
    g = torch.Generator().manual_seed(seed)
    model = DiT(**{**SMALL, **kw})
    for p in model.parameters():
        if p.requires_grad: p.data = torch.randn(p.shape, generator=g) * .1
    return model

def inputs(n=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=g), torch.rand(n, generator=g), torch.randint(5, (n,), generator=g)

@pytest.mark.parametrize("name", DIT_MODELS)
def test_every_named_model_keeps_the_image_size(name):
    with torch.device("meta"):
        model = dit_model(name, input_size=32, in_channels=8, num_classes=0, learn_sigma=False, depth=1)
        assert model(torch.empty(1, 8, 32, 32), torch.empty(1)).shape == (1, 8, 32, 32)

def test_only_the_position_table_is_frozen():
    assert [n for n, p in DiT(**SMALL).named_parameters() if not p.requires_grad] == ["pos_embed"]

def test_initialisation_statistics():
    torch.manual_seed(0)
    model = dit_model("DiT-T/2", num_classes=1000)
    w = model.blocks[0].attn.qkv.weight
    assert w.abs().max() <= (6 / sum(w.shape)) ** .5 and abs(w.std() - (2 / sum(w.shape)) ** .5) < 1e-3
    p = model.x_embedder.proj.weight
    assert p.abs().max() <= (6 / (p.shape[0] + p[0].numel())) ** .5
    assert abs(model.y_embedder.embedding_table.weight.std() - .02) < 1e-3
    assert abs(model.t_embedder.mlp[0].weight.std() - .02) < 1e-3
    for m in (model.blocks[3].adaLN_modulation[1], model.final_layer.linear): assert not m.weight.any() and not m.bias.any()
    assert torch.equal(model.pos_embed[0], sincos_pos_embed(192, 16).float())

def test_samples_do_not_see_each_other_and_mode_does_not_matter():
    model, (x, t, y) = randomised(), inputs()
    with torch.no_grad():
        whole = model.train()(x, t, y)
        assert torch.equal(whole, model.eval()(x, t, y))
        torch.testing.assert_close(torch.cat([model(x[i:i+1], t[i:i+1], y[i:i+1]) for i in range(4)]), whole, atol=1e-5, rtol=1e-4)

def test_dropping_a_label_is_the_null_label_and_hides_the_class():
    model, (x, t, y) = randomised(), inputs()
    drop = torch.tensor([1, 0, 1, 0])
    with torch.no_grad():
        out = model(x, t, y, drop)
        torch.testing.assert_close(out, model(x, t, torch.where(drop == 1, 5, y)))
        assert torch.equal(model(x, t, (y + 1) % 5, torch.ones(4)), model(x, t, y, torch.ones(4)))
        assert not torch.equal(model(x, t, (y + 1) % 5), model(x, t, y))

def test_every_weight_gets_a_gradient():
    model, (x, t, y) = randomised(), inputs()
    model(x, t, y).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)] == []

def test_half_precision_autocast_runs():
    model, (x, t, y) = randomised(), inputs()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x, t, y)
    with torch.no_grad(): torch.testing.assert_close(out.float(), model(x, t, y), atol=.1, rtol=.1)

@given(side=st.integers(1, 5), p=st.sampled_from([1, 2, 4]), c=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_unpatchify_inverts_cutting(side, p, c):
    image = torch.arange(2 * c * (side * p)**2, dtype=torch.float32).view(2, c, side * p, side * p)
    tokens = image.view(2, c, side, p, side, p).permute(0, 2, 4, 3, 5, 1).reshape(2, side * side, -1)
    assert torch.equal(unpatchify(tokens, p), image)

@pytest.mark.parametrize("kw, message", [
    (dict(input_size=7), "input_size must be divisible by 2, got 7"), (dict(hidden_size=26), "hidden_size must be divisible by 4, got 26"),
    (dict(num_heads=5), "hidden_size must be divisible by 5"),
    (dict(class_dropout_prob=1.5), r"class_dropout_prob must be in \[0, 1\], got 1.5")])
def test_bad_sizes(kw, message):
    with pytest.raises(ValueError, match=message): DiT(**{**SMALL, **kw})

def test_bad_conditioning():
    x, t, y = inputs()
    free = DiT(**{**SMALL, "num_classes": 0})
    with pytest.raises(ValueError, match="unconditional"): free(x, t, y)
    with pytest.raises(ValueError, match="force_drop_ids"): free(x, t, None, torch.ones(4))
    with pytest.raises(ValueError, match="class-conditional"): DiT(**SMALL)(x, t)
    with pytest.raises(ValueError, match="class_dropout_prob=0"): LabelEmbedder(3, 8, 0.)(y % 3, torch.ones(4))
    with pytest.raises(IndexError): DiT(**SMALL)(x, t, torch.tensor([0, 1, 2, -1]))
    with pytest.raises(AssertionError, match="Input height"): DiT(**SMALL)(torch.zeros(4, 3, 16, 16), t, y)

def test_label_drop_mask_is_exact_at_the_ends():
    u = torch.tensor([0., .0999, .1, .9999])
    assert label_drop_mask(u, .1).tolist() == [True, True, False, False] and not label_drop_mask(u, 0.).any()

def test_checkpoint_layouts_give_the_same_model(tmp_path):
    model = randomised(learn_sigma=True)
    state = model.state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"model": state, "opt": {"lr": .1}, "args": argparse.Namespace(a=1)}, tmp_path / "train.pt")
    save_file(state, tmp_path / "w.safetensors")
    x, t, y = inputs()
    for name in ("plain.pt", "train.pt", "w.safetensors"):
        loaded = load_checkpoint(tmp_path / name, num_heads=2)
        assert torch.equal(loaded(x, t, y), model(x, t, y)), name
        assert load_checkpoint(tmp_path / name, DiT(**SMALL)).pos_embed.requires_grad is False

def test_unconditional_checkpoint_round_trip(tmp_path):
    model = randomised(num_classes=0, learn_sigma=False)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_checkpoint(tmp_path / "w.safetensors", num_heads=2)
    assert (loaded.num_classes, loaded.learn_sigma) == (0, False)

def test_bad_checkpoints(tmp_path):
    state = randomised().state_dict()
    save_file({k: v for k, v in state.items() if k != "pos_embed"}, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match="'pos_embed' is missing"): load_checkpoint(tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match="pos_embed: missing"): load_checkpoint(tmp_path / "short.safetensors", DiT(**SMALL))
    save_file({**state, "extra": torch.ones(1)}, tmp_path / "long.safetensors")
    with pytest.raises(ValueError, match="extra: unknown"): load_checkpoint(tmp_path / "long.safetensors", DiT(**SMALL))
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="either a model or its arguments"):
        load_checkpoint(tmp_path / "w.safetensors", DiT(**SMALL), num_heads=2)
    with pytest.raises(FileNotFoundError): load_checkpoint(tmp_path / "none.safetensors")

def test_checkpoints_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path / "touched"), "w"))
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(pickle.UnpicklingError): read_state_dict(tmp_path / "evil.pt")
    assert not (tmp_path / "touched").exists()
