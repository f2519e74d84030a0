"Projected gradients and the influence that follows from them."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffprune.models.dit import DiT
from diffprune.models.flow import interpolate
from diffprune.pruning.gradients import sample_gradients, sample_projections
from diffprune.pruning.influence import mean_influence, output_energy, random_directions, self_influence
from diffprune.pruning.probes import ProbeGrid, ProbeSet, influences, probe_projections
from diffprune.pruning.scores import dtrak_scores


def dit(dtype=torch.float64, **kw):
    g = torch.Generator().manual_seed(0)
    m = DiT(**{**dict(input_size=8, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=3, learn_sigma=False), **kw})
    for p in m.parameters():
        if p.requires_grad: p.data = torch.randn(p.shape, generator=g) * .2
    return m.to(dtype)

def arguments(n, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x_1, x_0 = torch.randn(2, n, 1, 8, 8, generator=g).to(dtype)
    return dict(x_1=x_1, x_0=x_0, t=torch.full((n,), .9, dtype=dtype), y=torch.arange(n) % 3)

def by_hand(m, quantity, directions, n):
    "Projections of gradients held in full on directions that are written out."
    out, values = torch.zeros(n, len(next(iter(directions.values()))[0]), dtype=torch.float64), quantity()
    for i in range(n):
        for name, (u, v) in directions.items():
            layer = m.get_submodule(name)
            w = torch.autograd.grad(values[i], layer.weight, retain_graph=True)[0].double()
            if isinstance(layer, nn.Embedding): out[i] += torch.einsum("po,pi,io->p", u.double(), v.double(), w); continue
            k = layer.weight[0].numel()
            out[i] += torch.einsum("po,pi,oi->p", u.double(), v[:, :k].double(), w.flatten(1))
            if layer.bias is None: continue
            of_bias = torch.autograd.grad(values[i], layer.bias, retain_graph=True)[0].double()
            out[i] += (u * v[:, k:]).double() @ of_bias
    return out

@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kw", [{}, dict(patch_size=4), dict(depth=2, class_dropout_prob=0.)], ids=str)
def test_projections_are_exact(kw, dtype, tol):
    m, a = dit(dtype, **kw), arguments(4, dtype)
    directions, energy = random_directions(m, 9, seed=3), lambda: output_energy(m, **a)
    expected = by_hand(m, energy, directions, 4)
    torch.testing.assert_close(sample_projections(m, energy, directions).double(), expected, rtol=0, atol=tol * expected.abs().max().item())

@given(tokens=st.integers(1, 5), d_in=st.integers(1, 6), d_out=st.integers(1, 6), bias=st.booleans(), p=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_any_linear_layer(tokens, d_in, d_out, bias, p):
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(d_in, d_out, bias=bias)).double()
    x = torch.randn(3, tokens, d_in).double()
    quantity, directions = (lambda: m(x).sin().sum((1, 2))), random_directions(m, p)
    torch.testing.assert_close(sample_projections(m, quantity, directions), by_hand(m, quantity, directions, 3))

def test_convolutions_without_bias():
    m = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False).double()
    wrapped, x = nn.Sequential(m), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    quantity, directions = (lambda: wrapped(x).square().flatten(1).sum(1)), random_directions(wrapped, 4)
    torch.testing.assert_close(sample_projections(wrapped, quantity, directions), by_hand(wrapped, quantity, directions, 2))

def test_norms_are_kept_on_average():
    m, a = dit(), arguments(5)
    energy = lambda: output_energy(m, **a)
    exact = sample_gradients(m, energy).sq_norm
    found = torch.stack([sample_projections(m, energy, random_directions(m, 128, seed=s)).square().sum(1) for s in range(40)]).mean(0)
    torch.testing.assert_close(found, exact, rtol=.15, atol=0)

def test_output_energy_ignores_the_target():
    m, a = dit(), arguments(4)
    x = interpolate(a["x_0"], a["x_1"], a["t"])
    torch.testing.assert_close(output_energy(m, **a), m(x, a["t"], a["y"]).square().flatten(1).mean(1))
    torch.testing.assert_close(output_energy(m, x, x, a["t"], a["y"]), output_energy(m, **a))

@given(n=st.integers(1, 12), p=st.integers(1, 12), damping=st.floats(1e-3, 1e3), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_kernel_against_the_dual_form(n, p, damping, seed):
    f = np.random.default_rng(seed).normal(size=(n, p))
    gram = f @ f.T
    dual = np.linalg.solve(gram + damping * np.trace(gram) / n * np.eye(n), gram)
    np.testing.assert_allclose(mean_influence(f, damping), dual.mean(1), atol=1e-8)
    np.testing.assert_allclose(self_influence(f, damping), np.diag(dual), atol=1e-8)
    assert (self_influence(f, damping) >= 0).all() and (self_influence(f, damping) < 1).all()
    np.testing.assert_allclose(mean_influence(f * 7, damping), mean_influence(f, damping), atol=1e-8)      # units don't matter

def test_order_does_not_matter():
    f, order = np.random.default_rng(0).normal(size=(30, 5)), np.random.default_rng(1).permutation(30)
    np.testing.assert_allclose(mean_influence(f[order]), mean_influence(f)[order])

@pytest.mark.parametrize("f, damping, message", [
    (np.zeros((3, 2)), 1.0, "gradients are zero"), (np.full((3, 2), np.inf), 1.0, "NaN or infinity"),
    (np.ones(3), 1.0, r"\(samples, directions\)"), (np.ones((0, 2)), 1.0, r"\(samples, directions\)"),
    (np.ones((3, 2)), 0.0, "damping must be positive"), (np.ones((3, 2)), float("nan"), "damping must be positive")])
def test_bad_input(f, damping, message):
    for score in (mean_influence, self_influence):
        with pytest.raises(ValueError, match=message): score(f, damping)

def probe_set(n=12):
    latents = np.random.default_rng(0).normal(size=(n, 1, 8, 8)).astype(np.float32)
    return ProbeSet(latents, np.array([f"s{i}" for i in range(n)]), np.arange(n) % 3)

def test_probe_in_batches_and_parts():
    m, s, grid = dit(torch.float32), probe_set(), ProbeGrid((.5, .9), 1)
    whole = probe_projections(m, s, grid, 8, batch_size=12, progress=False)
    assert whole.shape == (12, 2, 8) and influences(whole).shape == (12, 2)
    np.testing.assert_allclose(probe_projections(m, s, grid, 8, batch_size=5, progress=False), whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(probe_projections(m, s.part(slice(3, 9)), grid, 8, progress=False), whole[3:9], rtol=1e-4, atol=1e-4)
    low = probe_projections(m, s, grid, 8, dtype=torch.bfloat16, progress=False)
    assert np.linalg.norm(low - whole) < .05 * np.linalg.norm(whole)
    diverged = ProbeSet(s.latents * np.nan, s.ids, s.labels)
    with pytest.raises(ValueError, match="NaN or infinite"): probe_projections(m, diverged, grid, 8, progress=False)

def test_scores_rank_the_loner_last():
    f = np.r_[np.random.default_rng(0).normal([3, 0, 0], .1, (6, 3)), [[0., 3., 0.]]][:, None]
    scores = dtrak_scores(influences(f), [.9])
    assert scores.values.argmin() == 6 and scores.per_draw.shape == (7, 1)
