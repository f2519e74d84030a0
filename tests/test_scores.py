"Scores from recorded losses and gradients: exactness, order and batch independence, reliability, direction, bad input."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffprune.models.dit import DiT
from diffprune.models.train import TrainConfig, Trainer, diffusion_loss
from diffprune.pruning.probes import (
    ProbeGrid,
    ProbeSet,
    Recorder,
    epoch_ends,
    leave_one_out,
    mean_gradient,
    probe_losses,
    probe_moso,
    probe_norms,
    stratified_times,
    surrogate_folds,
)
from diffprune.pruning.scores import el2n_scores, grand_scores, monotonicity_scores, moso_scores, normalise_times, split_half_reliability


def model(seed=0, **kw):
    g = torch.Generator().manual_seed(seed)
    small = dict(input_size=4, patch_size=2, in_channels=2, hidden_size=16, depth=1, num_heads=2, num_classes=3, learn_sigma=False)
    m = DiT(**{**small, **kw})
    for p in m.parameters():
        if p.requires_grad: p.data = torch.randn(p.shape, generator=g) * .2
    return m

def samples(n=13, labels=True, seed=0):
    rng = np.random.default_rng(seed)
    latents, ids = rng.standard_normal((n, 2, 4, 4)).astype(np.float32), np.array([f"s{i}" for i in range(n)])
    return ProbeSet(latents, ids, rng.integers(0, 3, n) if labels else None)

def permuted(s, order): return ProbeSet(s.latents[order], s.ids[order], None if s.labels is None else s.labels[order])

GRID = ProbeGrid((.3, .9), n_noise=2)
QUIET = dict(progress=False)

@pytest.mark.parametrize("probe", [lambda m, s, b: probe_losses(m, s, GRID, b, **QUIET),
                                   lambda m, s, b: probe_norms(m, s, GRID, b, **QUIET)[1],
                                   lambda m, s, b: probe_moso(m, s, GRID, b, **QUIET)], ids=["losses", "norms", "moso"])
@pytest.mark.parametrize("labels", [True, False])
def test_batch_size_and_order_do_not_matter(probe, labels):
    m, s = model(num_classes=3 if labels else 0), samples(labels=labels)
    whole, order = probe(m, s, 100), np.random.default_rng(1).permutation(13)
    np.testing.assert_allclose(probe(m, s, 4), whole, rtol=2e-4, atol=2e-4 * np.abs(whole).max())
    np.testing.assert_allclose(probe(m, permuted(s, order), 5), whole[order], rtol=2e-4, atol=2e-4 * np.abs(whole).max())

def test_moso_against_gradients_held_in_full():
    m, s = model().double(), samples(7)
    s = ProbeSet(s.latents.astype(np.float64), s.ids, s.labels)
    got = probe_moso(m, s, GRID, 3, **QUIET)
    params = [p for p in m.parameters() if p.requires_grad]
    from diffprune.models.flow import flow_matching_loss
    for d, t in enumerate(GRID.draw_times):
        x_0 = GRID.noise(d, s.ids, (2, 4, 4)).double()
        loss = flow_matching_loss(m, torch.as_tensor(s.latents), x_0, torch.full((7,), t, dtype=torch.float64), torch.as_tensor(s.labels))
        g = torch.stack([torch.cat([v.flatten() for v in torch.autograd.grad(l, params, retain_graph=True)]) for l in loss])
        expected = [(g[i] @ torch.cat([g[:i], g[i + 1:]]).mean(0)).item() for i in range(7)]
        np.testing.assert_allclose(got[:, d], expected, rtol=1e-5)
        mean = torch.cat([v.flatten() for v in mean_gradient(m, s, GRID, d, 3).values()])
        torch.testing.assert_close(mean, g.mean(0))

def test_probing_does_not_disturb_the_model():
    m, s = model(), samples()
    before = {k: v.clone() for k, v in m.state_dict().items()}
    torch.manual_seed(3); state = torch.get_rng_state()
    for probe in (probe_losses, probe_norms, probe_moso): probe(m, s, GRID, **QUIET)
    probe_norms(m, s, GRID, dtype=torch.bfloat16, **QUIET)
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items()) and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in m.parameters()) and m.final_layer.linear.weight.requires_grad

def test_recording_does_not_change_training_and_survives_an_interruption(tmp_path):
    s = samples(20)
    data, cfg = dict(latent=s.latents, label=s.labels), TrainConfig(steps=12, batch_size=5, checkpoint_every=5, ema_decay=None, lr=1e-2)
    measure = lambda m: probe_losses(m, s, GRID, **QUIET)
    def run(folder, on_step=None): return Trainer(model(), diffusion_loss, data, cfg, workdir=folder / "w", device="cpu", on_step=on_step)
    plain = run(tmp_path / "a"); plain.fit(progress=False)
    straight = Recorder(tmp_path / "b" / "r", epoch_ends(20, 5, 3), measure)
    recorded = run(tmp_path / "b", straight); recorded.fit(progress=False)
    for k, v in plain.model.state_dict().items(): assert torch.equal(v, recorded.model.state_dict()[k])
    class Cut(Exception): pass
    broken = Recorder(tmp_path / "c" / "r", epoch_ends(20, 5, 3), measure)
    def cut(trainer):
        broken(trainer)
        if trainer.step == 9: raise Cut
    with pytest.raises(Cut): run(tmp_path / "c", cut).fit(progress=False)
    with pytest.raises(FileNotFoundError): broken.load()
    run(tmp_path / "c", broken).fit(progress=False)
    assert np.array_equal(broken.load(), straight.load()) and straight.load().shape == (3, 20, 4)

@given(n=st.integers(1, 200), batch=st.integers(1, 50), epochs=st.integers(1, 6))
def test_epoch_ends(n, batch, epochs):
    ends = epoch_ends(n, batch, epochs)
    for e, step in enumerate(ends, 1): assert step * batch >= e * n > (step - 1) * batch

losses = arrays(np.float32, st.tuples(st.integers(2, 5), st.integers(1, 8), st.integers(1, 3)), elements=st.floats(0, 10, width=32))
@given(losses)
@settings(deadline=None)
def test_monotonicity_is_a_count(values):
    times = np.linspace(0, 1, values.shape[2])
    s = monotonicity_scores(values, times)
    for i in range(values.shape[1]):
        rises = [sum(values[e, i, d] > values[e - 1, i, d] for e in range(1, len(values))) for d in range(values.shape[2])]
        assert s.values[i] == pytest.approx(np.mean(rises)) and 0 <= s.values[i] <= len(values) - 1
    order = np.arange(values.shape[1])[::-1]
    assert np.array_equal(monotonicity_scores(values[:, order], times).values, s.values[order])

@given(arrays(np.float64, st.tuples(st.integers(2, 20), st.just(4)), elements=st.floats(-100, 100)), st.floats(.1, 10), st.floats(-5, 5))
@settings(deadline=None)
def test_normalisation_forgets_the_scale_of_each_time(values, scale, shift):
    times = np.array([.1, .1, .9, .9])
    z = normalise_times(values, times)
    assert np.isfinite(z).all()
    for t in (.1, .9):
        part = values[:, times == t]
        if part.std() > 1e-3:
            assert abs(z[:, times == t].mean()) < 1e-6 and z[:, times == t].std() == pytest.approx(1)
            other = values.copy(); other[:, times == t] = part * scale + shift
            np.testing.assert_allclose(normalise_times(other, times), z, atol=1e-4)

def test_direction_of_each_score():
    rng = np.random.default_rng(0)
    hard = np.arange(50)
    fall = np.linspace(3, 1, 6)[:, None, None] + rng.standard_normal((6, 50, 2)) * .01 + hard[None, :, None] * .1
    assert np.corrcoef(el2n_scores(fall, [.9, .9]).values, hard)[0, 1] > .99
    wobble = fall.copy(); wobble[::2, :10] += 1
    m = monotonicity_scores(wobble, [.9, .9]).values
    assert m[:10].min() > m[10:].max()
    assert np.array_equal(np.argsort(grand_scores(hard[:, None] * 2., [.9]).values), hard)
    assert np.array_equal(np.argsort(moso_scores(-hard[None, None, :, None] * 1., [.1], [.9]).values), hard[::-1])

def test_moso_weights_checkpoints_by_learning_rate_and_averages_surrogates():
    p = np.random.default_rng(0).standard_normal((3, 2, 9, 1))
    expected = (p[:, 0] * .3 + p[:, 1] * .1).mean(0) / 2
    got = moso_scores(p, np.array([.3, .1]), np.array([.9]))
    np.testing.assert_allclose(got.values, ((expected - expected.mean()) / expected.std())[:, 0])

def test_leave_one_out_by_hand():
    g = np.random.default_rng(0).standard_normal((6, 9))
    others = [(g[i] @ np.delete(g, i, 0).mean(0)) for i in range(6)]
    np.testing.assert_allclose(leave_one_out(g @ g.mean(0), (g**2).sum(1), 6), others)

def test_reliability_grows_with_draws_and_is_reproducible():
    rng = np.random.default_rng(0)
    signal, noise = rng.standard_normal((500, 1)), rng.standard_normal((500, 32)) * 3
    found = [split_half_reliability((signal + noise)[:, :d], np.full(d, .9)) for d in (2, 8, 32)]
    assert found[0] < found[1] < found[2] and found[2] == split_half_reliability(signal + noise, np.full(32, .9))
    assert math.isnan(split_half_reliability(signal, [.9])) and math.isnan(split_half_reliability(noise[:2], np.full(32, .9)))
    assert split_half_reliability(np.zeros((5, 4)), np.full(4, .9)) == 0
    opposed = np.concatenate([signal, -signal], 1)
    assert split_half_reliability(opposed, [.9, .9]) == -1

def test_halves_share_every_time():
    "Scores that differ between times but not between noises are perfectly reliable only if each half sees every time."
    rng = np.random.default_rng(0)
    by_time = rng.standard_normal((200, 3)).repeat(4, axis=1)
    assert split_half_reliability(by_time, np.repeat([.1, .5, .9], 4)) == pytest.approx(1)
    assert split_half_reliability(rng.standard_normal((200, 8)), np.linspace(0, 1, 8)) < .3

@given(n=st.integers(1, 40), k=st.integers(1, 40), seed=st.integers(0, 5))
@settings(deadline=None)
def test_folds_partition_whatever_the_order(n, k, seed):
    ids = np.array([f"i{i}" for i in range(n)])
    if k > n:
        with pytest.raises(ValueError, match="n_folds"): surrogate_folds(ids, k, seed)
        return
    folds, back = surrogate_folds(ids, k, seed), surrogate_folds(ids[::-1], k, seed)
    assert sorted(np.concatenate(folds)) == list(range(n)) and max(map(len, folds)) - min(map(len, folds)) <= 1
    assert [set(ids[f]) for f in folds] == [set(ids[::-1][f]) for f in back]

def test_stratified_times(): assert stratified_times(2) == (.25, .75) and stratified_times(1) == (.5,)

def test_bad_input():
    s = samples(4)
    with pytest.raises(ValueError, match="labels"): ProbeSet(s.latents, s.ids, s.labels[:2])
    with pytest.raises(ValueError, match="at least 2 samples"): probe_moso(model(), samples(1), GRID, **QUIET)
    with pytest.raises(ValueError, match="unconditional"): probe_losses(model(num_classes=0), s, GRID, **QUIET)
    bad = model(); bad.final_layer.linear.bias.data.fill_(float("nan"))
    for probe in (probe_losses, probe_norms, probe_moso):
        with pytest.raises(ValueError, match="NaN or infinite, the first at position 0"): probe(bad, s, GRID, **QUIET)
    for values in (np.full((3, 2, 1), np.nan), np.full((3, 2, 1), np.inf)):
        with pytest.raises(ValueError, match="of 2 samples are NaN or infinite"): monotonicity_scores(values, [.9])
        with pytest.raises(ValueError, match="NaN or infinite"): el2n_scores(values, [.9])
    with pytest.raises(ValueError, match="epochs, samples, draws"): el2n_scores(np.zeros((3, 2)), [.9])
    with pytest.raises(ValueError, match="at least 2 epochs"): monotonicity_scores(np.zeros((1, 2, 1)), [.9])
    with pytest.raises(ValueError, match="steps must be positive"): Recorder("x", [0, 3], None)
    for times in ((), (-.1,), (float("nan"),)):
        with pytest.raises(ValueError, match="times must be in"): ProbeGrid(times)

def test_compiled_probes_give_the_same(monkeypatch):
    "Two full batches by the recorded graph (the compiler itself is tested with the gradients), the rest without."
    graphs = []
    monkeypatch.setattr(torch, "compile", lambda graph: graphs.append(graph) or graph)
    m, s, grid = model(), samples(8), ProbeGrid((.3, .9), 1)
    np.testing.assert_allclose(probe_norms(m, s, grid, 3, compiled=True, **QUIET)[1], probe_norms(m, s, grid, 3, **QUIET)[1], rtol=1e-4)
    exact = probe_moso(m, s, grid, 3, **QUIET)
    np.testing.assert_allclose(probe_moso(m, s, grid, 3, compiled=True, **QUIET), exact, atol=1e-4 * np.abs(exact).max())
    assert len(graphs) == 2                                          # one for the norms, one for the products
