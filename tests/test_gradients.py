"Per-sample gradient norms and products: exact for every kind of layer, every shape, and without side effects."
import copy
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffprune.models.dit import DiT
from diffprune.models.flow import flow_matching_loss
from diffprune.pruning.gradients import CompiledGradients, sample_gradients


def dit(dtype=torch.float64, seed=0, **kw):
    g = torch.Generator().manual_seed(seed)
    m = DiT(**{**dict(input_size=8, patch_size=2, in_channels=3, hidden_size=16, depth=2, num_heads=2, num_classes=4), **kw})
    for p in m.parameters():
        if p.requires_grad: p.data = torch.randn(p.shape, generator=g) * .2
    return m.to(dtype)

def arguments(m, n=5, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    shape = (n, m.in_channels, m.input_size, m.input_size)
    x_1, x_0 = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
    return dict(x_1=x_1, x_0=x_0, t=torch.rand(n, generator=g).to(dtype),
                y=torch.randint(4, (n,), generator=g) if m.num_classes else None)

def single(m, losses, n):
    "name -> (n, *shape), by n backward passes."
    params = {k: p for k, p in m.named_parameters() if p.requires_grad}
    rows = [torch.autograd.grad(losses()[i], list(params.values()), allow_unused=True) for i in range(n)]
    return {k: torch.stack([torch.zeros_like(p) if r[j] is None else r[j] for r in rows]) for j, (k, p) in enumerate(params.items())}

def check(m, losses, n, rtol, atol_dot=1e-9):
    full = single(m, losses, n)
    g = torch.Generator().manual_seed(5)
    along = {k: torch.randn(v.shape[1:], generator=g).to(v.dtype) for k, v in full.items()}
    found = sample_gradients(m, losses, along)
    for name, sq in found.layer_sq_norms.items():
        parts = [full[f"{name}.{w}"].flatten(1) for w in ("weight", "bias") if f"{name}.{w}" in full]
        true = torch.cat(parts, 1).norm(dim=1)
        torch.testing.assert_close(sq.sqrt(), true, rtol=rtol, atol=1e-7 * true.max().item(), msg=lambda s: f"{name}: {s}")
        dot = sum((full[f"{name}.{w}"] * along[f"{name}.{w}"]).flatten(1).sum(1) for w in ("weight", "bias") if f"{name}.{w}" in full)
        atol = max(atol_dot, rtol * (true.max() * along[f"{name}.weight"].norm()).item())
        torch.testing.assert_close(found.layer_dots[name], dot, rtol=rtol, atol=atol)
    torch.testing.assert_close(found.norm, torch.cat([v.flatten(1) for v in full.values()], 1).norm(dim=1), rtol=rtol, atol=0)
    assert {k.rsplit(".", 1)[0] for k in full} == set(found.layer_sq_norms)

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kw", [dict(), dict(num_classes=0), dict(learn_sigma=False), dict(patch_size=1), dict(patch_size=4),
                                dict(patch_size=8), dict(class_dropout_prob=0.0)],
                         ids=lambda kw: ",".join(f"{k}={v}" for k, v in kw.items()) or "default")
def test_dit_layer_by_layer(kw, dtype, rtol, device):
    m = dit(dtype, **kw).to(device)
    a = {k: None if v is None else v.to(device) for k, v in arguments(m, dtype=dtype).items()}
    check_on = (lambda: flow_matching_loss(m, **a))
    if device == "cpu": check(m, check_on, 5, rtol)
    else:
        full = single(m, check_on, 5)
        norms = torch.cat([v.flatten(1) for v in full.values()], 1).norm(dim=1)
        torch.testing.assert_close(sample_gradients(m, check_on).norm, norms, rtol=rtol, atol=0)

def test_dropped_labels_use_the_null_row():
    m = dit(); a = arguments(m)
    check(m, lambda: flow_matching_loss(m, **a, force_drop_ids=torch.tensor([1, 0, 1, 0, 0])), 5, 1e-9)

@given(tokens=st.integers(1, 12), d_in=st.integers(1, 12), d_out=st.integers(1, 12), bias=st.booleans(), n=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_any_linear_layer(tokens, d_in, d_out, bias, n):
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(d_in, d_out, bias=bias), nn.Tanh()).double()
    x = torch.randn(n, tokens, d_in).double()
    check(m, lambda: m(x).sin().sum((1, 2)), n, 1e-7)

@pytest.mark.parametrize("kw", [dict(kernel_size=3), dict(kernel_size=3, padding=1), dict(kernel_size=2, stride=2),
                                dict(kernel_size=3, dilation=2, padding=2, bias=False), dict(kernel_size=(1, 3), stride=(2, 1))])
def test_convolutions(kw):
    torch.manual_seed(0)
    m = nn.Sequential(nn.Conv2d(2, 3, **kw), nn.Tanh(), nn.Conv2d(3, 2, 1)).double()
    x = torch.randn(4, 2, 6, 6).double()
    check(m, lambda: m(x).square().flatten(1).sum(1), 4, 1e-9)

def test_many_weight_gradients_at_a_time_are_split():
    "A layer so large that its gradients are formed one at a time."
    m = nn.Linear(2100, 2100)
    x = torch.randn(3, 1200, 2100) * .1
    found = sample_gradients(m, lambda: m(x).square().flatten(1).mean(1))
    g = 2 * m(x).detach() / (1200 * 2100)
    true = [((q.T @ p).square().sum() + q.sum(0).square().sum()).sqrt() for p, q in zip(x, g)]
    torch.testing.assert_close(found.norm, torch.stack(true), rtol=1e-4, atol=0)

def test_nothing_is_left_behind():
    m = dit(); a = arguments(m)
    flags = {k: p.requires_grad for k, p in m.named_parameters()}
    before = {k: v.clone() for k, v in m.state_dict().items()}
    with torch.no_grad(): sample_gradients(m, lambda: flow_matching_loss(m, **a))
    assert {k: p.requires_grad for k, p in m.named_parameters()} == flags
    assert all(p.grad is None for p in m.parameters()) and all(torch.equal(v, before[k]) for k, v in m.state_dict().items())
    assert all(not l._forward_hooks for l in m.modules())

def test_a_failure_leaves_nothing_behind_either():
    m = dit()
    with pytest.raises(RuntimeError, match="stop"):
        sample_gradients(m, lambda: (_ for _ in ()).throw(RuntimeError("stop")))
    assert m.blocks[0].attn.qkv.weight.requires_grad and all(not l._forward_hooks for l in m.modules())

def test_frozen_layers_do_not_count():
    m = dit(); a = arguments(m)
    m.blocks[0].requires_grad_(False); m.t_embedder.requires_grad_(False)
    found = sample_gradients(m, lambda: flow_matching_loss(m, **a))
    assert not any(k.startswith(("blocks.0", "t_embedder")) for k in found.layer_sq_norms)
    check(m, lambda: flow_matching_loss(m, **a), 5, 1e-9)

def test_existing_gradients_are_untouched():
    m = dit(); a = arguments(m)
    flow_matching_loss(m, **a).sum().backward()
    before = copy.deepcopy({k: p.grad for k, p in m.named_parameters() if p.grad is not None})
    sample_gradients(m, lambda: flow_matching_loss(m, **a))
    for k, p in m.named_parameters():
        if p.grad is not None: assert torch.equal(p.grad, before[k])

def test_larger_residual_means_larger_gradient():
    m = dit(); a = arguments(m)
    m.requires_grad_(True); m.pos_embed.requires_grad_(False)
    far = {**a, "x_1": a["x_1"].clone()}
    norm = lambda args: sample_gradients(m, lambda: flow_matching_loss(m, **args) * torch.tensor([1., 1, 1, 1, 3]).double()).norm
    torch.testing.assert_close(norm(far)[4], 3 * sample_gradients(m, lambda: flow_matching_loss(m, **a)).norm[4])

class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
    def forward(self, x): return self.b(self.a(x))

def half_frozen():
    m = nn.Linear(3, 3); m.bias.requires_grad_(False)
    return m

@pytest.mark.parametrize("make, message", [
    (Shared, "shared between layers"), (half_frozen, "frozen bias"),
    (lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "no per-sample gradient for 1.weight")])
def test_models_it_would_be_wrong_for(make, message):
    m = make()
    with pytest.raises(ValueError, match=message): sample_gradients(m, lambda: m(torch.ones(2, 3)).sum(1))

@pytest.mark.parametrize("kw", [dict(groups=2), dict(padding="same"), dict(padding=1, padding_mode="circular")])
def test_unsupported_convolutions(kw):
    m = nn.Conv2d(2, 2, 3, **kw)
    with pytest.raises(ValueError, match="only convolutions"): sample_gradients(m, lambda: m(torch.ones(1, 2, 4, 4)).flatten(1).sum(1))

@pytest.mark.parametrize("kw, x", [(dict(padding_idx=0), torch.tensor([1, 2])), (dict(max_norm=1.0), torch.tensor([1, 2])),
                                   (dict(), torch.tensor([[1, 2], [1, 1]]))])
def test_unsupported_embeddings(kw, x):
    "Rows that are used twice by a sample add up before they are squared, which the closed form doesn't know."
    m = nn.Embedding(4, 3, **kw)
    with pytest.raises(ValueError, match="embedding"): sample_gradients(m, lambda: m(x).flatten(1).sum(1))

def same_as_plain(m, losses, batch, along):
    fused = CompiledGradients(m, losses)
    for _ in range(2):
        found, exact = fused(batch, along), sample_gradients(m, lambda: losses(batch), along)
        torch.testing.assert_close(found.norm, exact.norm, rtol=1e-4, atol=0)
        torch.testing.assert_close(found.loss, exact.loss)
        torch.testing.assert_close(found.dot, exact.dot, rtol=1e-4, atol=1e-4 * exact.dot.abs().max().item())
        assert set(found.layer_sq_norms) == set(exact.layer_sq_norms)
        with torch.no_grad():
            for p in m.parameters(): p.mul_(1.3)                    # the graph must look weights up at every call
    assert len(fused.graphs) == 1 and all(p.grad is None for p in m.parameters())

def random_direction(m):
    g = torch.Generator().manual_seed(5)
    return {k: torch.randn(p.shape, generator=g, dtype=p.dtype) for k, p in m.named_parameters() if p.requires_grad}

def test_recorded_graph_of_a_dit(monkeypatch):
    "Without the compiler, which changes nothing but speed."
    monkeypatch.setattr(torch, "compile", lambda graph: graph)
    m = dit(torch.float32); a = arguments(m, dtype=torch.float32)
    same_as_plain(m, lambda batch: flow_matching_loss(m, **batch), a, random_direction(m))
    assert m.blocks[0].attn.qkv.weight.requires_grad and not m.pos_embed.requires_grad

@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_compiled_graph():
    m = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2))
    batch = dict(x=torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)))
    same_as_plain(m, lambda batch: m(batch["x"]).square().sum((1, 2)), batch, random_direction(m))

def test_without_a_compiler_it_warns_and_computes_the_same():
    import torch._inductor.config as inductor
    torch._dynamo.reset()
    m = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    x = torch.randn(5, 2, 3).double()
    losses = lambda batch: m(batch["x"]).square().sum((1, 2))
    no_compiler = inductor.patch({"cpp.cxx": ("/nowhere/c++",), "force_disable_caches": True})
    with no_compiler, pytest.warns(UserWarning, match="could not be compiled"):
        found = CompiledGradients(m, losses)(dict(x=x))
    torch.testing.assert_close(found.norm, sample_gradients(m, lambda: losses(dict(x=x))).norm)
