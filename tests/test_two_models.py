"Two models on one path: who is asked when, the way back, the cached seam, its loss, and what a pair costs."
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffprune.models.dit import DiT
from diffprune.models.flow import guided_velocity, predict_velocity, sample_latents, sample_noise, sample_ode
from diffprune.models.train import Draws, TrainConfig, Trainer, diffusion_loss
from diffprune.models.two_models import Segment, TwoModels, load_seam, sampling_cost, seam_loss, switch_steps, write_seam


def model(seed=0, **kw):
    g = torch.Generator().manual_seed(seed)
    m = DiT(**dict(input_size=4, patch_size=2, in_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=3, learn_sigma=False) | kw)
    for p in m.parameters():
        if p.requires_grad: p.data = torch.randn(p.shape, generator=g)*.2
    return m.requires_grad_(False)


SMALL, LARGE, BLIND = model(0), model(1, hidden_size=32, depth=2, learn_sigma=True), model(2, num_classes=0)
X, Y = torch.randn(5, 4, 4, 4, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2, 1, 0])


def by_hand(small, large, x, y, n, switch, scale):
    "Euler's method as the follow-up has it: the small model while the time is before the switch."
    for i in range(n):
        m = small if i/n < switch - 1e-9 else large
        x = x + guided_velocity(m, x, torch.full((len(x),), i/n), y, scale)/n
    return x


@given(n=st.integers(1, 12), switch=st.floats(0, 1), scale=st.sampled_from([1., 2.5]))
@settings(max_examples=12, deadline=None)
def test_a_pair_is_eulers_method_with_two_velocities(n, switch, scale):
    if min(abs(i/n - switch) for i in range(n + 1)) < 1e-5: return  # a matter of rounding, below
    found = sample_ode(TwoModels(SMALL, LARGE, switch), X, Y, n_steps=n, cfg_scale=scale)
    torch.testing.assert_close(found, by_hand(SMALL, LARGE, X, Y, n, switch, scale), atol=1e-3, rtol=1e-3)


@given(n=st.integers(1, 120), data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_switch_on_the_grid_is_reached_in_spite_of_rounding(n, data):
    k = data.draw(st.integers(0, n))
    assert switch_steps(n, k/n) == (k, n - k)
    asked = []
    class Noted(nn.Module):
        def __init__(self, name): super().__init__(); self.name = name
        def forward(self, x, t, y=None, drop=None): asked.append(self.name); return torch.zeros_like(x)
    sample_ode(TwoModels(Noted("small"), Noted("large"), k/n), torch.zeros(1, 1, 1, 1), n_steps=n)
    assert asked == ["small"]*k + ["large"]*(n - k)


def test_the_counts_of_the_follow_up():
    assert [switch_steps(59, s) for s in (.5, .6, .7, .8, .9)] == [(30, 29), (36, 23), (42, 17), (48, 11), (54, 5)]


def test_the_ends_are_the_models_themselves():
    for method in ("euler", "heun"):
        how = dict(method=method, n_steps=5, cfg_scale=1.5)
        assert torch.equal(sample_ode(TwoModels(SMALL, LARGE, 0.), X, Y, **how), sample_ode(LARGE, X, Y, **how))
    assert torch.equal(sample_ode(TwoModels(SMALL, LARGE, 1.), X, Y, n_steps=5), sample_ode(SMALL, X, Y, n_steps=5))


def test_any_pair_on_the_same_latents():
    t = torch.full((5,), .9)
    for small in (BLIND, SMALL, model(4, patch_size=4)):
        pair = TwoModels(small, LARGE, .5)
        assert torch.equal(guided_velocity(pair, X, t, Y, 3.), guided_velocity(LARGE, X, t, Y, 3.))
        labels = torch.zeros(7, dtype=torch.long)
        drawn = sample_latents(pair, range(7), (4, 4, 4), 0, labels, 3, progress=False, n_steps=4, cfg_scale=2.)
        assert drawn.shape == (7, 4, 4, 4) and drawn.isfinite().all()
    early = guided_velocity(TwoModels(BLIND, LARGE, .5), X, t*0, Y, 3.)
    torch.testing.assert_close(early, predict_velocity(BLIND, X, t*0), atol=1e-5, rtol=1e-5)  # no labels, so nothing to guide


@pytest.mark.parametrize("small, switch, said", [
    (model(input_size=8), .5, "on the same"), (model(in_channels=3), .5, "on the same"), (model(num_classes=5), .5, "5 classes"),
    (SMALL, -.1, "switch is -0.1"), (SMALL, float("nan"), "switch is nan"), (SMALL, True, "switch is True"),
    (SMALL, None, "switch is None")])
def test_what_cannot_be_joined(small, switch, said):
    with pytest.raises(ValueError, match=said): TwoModels(small, LARGE, switch)


@given(a=st.floats(0, 1), b=st.floats(0, 1), n=st.integers(1, 8))
@settings(max_examples=12, deadline=None)
def test_a_segment_runs_from_one_time_to_the_other(a, b, n):
    x = X.double()
    for i in range(n):
        t = torch.full((5,), a + (b - a)*i/n)
        x = x + (b - a)/n*guided_velocity(LARGE, x.float(), t, Y, 2.).double()
    torch.testing.assert_close(sample_ode(Segment(LARGE, a, b), X, Y, n_steps=n, cfg_scale=2.).double(), x, atol=2e-3, rtol=2e-3)


def test_there_and_back_again():
    tight = dict(method="dopri5", rtol=1e-6, atol=1e-6)
    m = model(1, hidden_size=32, depth=2).double()
    back = sample_ode(Segment(m, 1., .4), X.double(), Y, **tight)
    torch.testing.assert_close(sample_ode(Segment(m, .4, 1.), back, Y, **tight), X.double(), atol=1e-3, rtol=1e-3)
    assert (back - X).abs().max() > .1


def seam(folder, y=Y, switch=.5, **kw):
    folder.mkdir()
    write_seam(folder, LARGE if y is not None else BLIND, X.numpy(), switch, y, n_steps=6, progress=False, **kw)
    return {name: torch.from_numpy(np.array(a)) for name, a in load_seam(folder).items()}


def test_the_seam_is_the_way_back_and_does_not_depend_on_batches(tmp_path):
    whole, parts = seam(tmp_path/"a", batch_size=5), seam(tmp_path/"b", batch_size=2)
    assert set(whole) == {"seam_point", "seam_velocity", "seam_free"}
    for name in whole: torch.testing.assert_close(whole[name], parts[name], atol=1e-4, rtol=1e-4)
    x = X
    for i in range(3): x = x - predict_velocity(LARGE, x, torch.full((5,), 1 - i/6), Y)/6
    torch.testing.assert_close(whole["seam_point"], x, atol=1e-4, rtol=1e-4)
    at = torch.full((5,), .5)
    torch.testing.assert_close(whole["seam_velocity"], predict_velocity(LARGE, x, at, Y), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(whole["seam_free"], predict_velocity(LARGE, x, at, Y, torch.ones(5)), atol=1e-3, rtol=1e-3)
    assert set(seam(tmp_path/"c", None)) == {"seam_point", "seam_velocity"}


def test_the_seam_of_few_steps_and_bad_settings(tmp_path):
    assert seam(tmp_path/"a", switch=.99)["seam_point"].isfinite().all()  # the large model's share is one step at least
    for switch in (0, 1, 1.2):
        with pytest.raises(ValueError, match="strictly between"): seam(tmp_path/f"b{switch}", switch=switch)
    with pytest.raises(ValueError, match="5 latents but 2 labels"): seam(tmp_path/"c", Y[:2])
    assert not list((tmp_path/"c").iterdir()), "nothing is written before the settings are known to be right"


def test_the_loss_is_its_formula(tmp_path):
    batch = dict(seam(tmp_path/"a"), latent=X, label=Y)
    for p_drop in (0., .5, 1.):
        loss, parts = seam_loss(SMALL, batch, Draws(7, 3, 5), .5, .25, p_drop)
        draws = Draws(7, 3, 5)
        x_0, t, u = draws.randn(4, 4, 4), draws.rand()*.5, draws.rand()
        drop, w = u < p_drop, t.view(-1, 1, 1, 1)
        flow = (predict_velocity(SMALL, (1 - w)*x_0 + w*X, t, Y, drop) - (X - x_0)).square().mean()
        target = torch.stack([batch["seam_free"][i] if d else batch["seam_velocity"][i] for i, d in enumerate(drop)])
        at = predict_velocity(SMALL, batch["seam_point"], torch.full((5,), .5), Y, drop)
        torch.testing.assert_close(loss, flow + .25*(at - target).square().mean(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(parts["flow"] + .25*parts["seam"], loss)
    assert torch.equal(seam_loss(SMALL, batch, Draws(7, 3, 5), 1., 0.)[0], diffusion_loss(SMALL, batch, Draws(7, 3, 5))[0])


def test_the_large_model_has_no_seam_and_training_closes_one(tmp_path):
    batch = dict(seam(tmp_path/"a"), latent=X, label=Y)
    assert seam_loss(LARGE, batch, Draws(0, 0, 5), .5)[1]["seam"] < 1e-8 < seam_loss(SMALL, batch, Draws(0, 0, 5), .5)[1]["seam"]
    ends = {}
    for weight in (1e-9, 1.):
        m = model(0).requires_grad_(True)
        cfg = TrainConfig(steps=25, batch_size=5, lr=2e-2, log_every=10, ema_decay=None)
        log = Trainer(m, partial(seam_loss, switch=.5, weight=weight), batch, cfg, device="cpu").fit(progress=False)
        ends[weight] = log.seam.iloc[-1]
    assert ends[1.] < .6*ends[1e-9]


def test_a_blind_seam_needs_no_labels(tmp_path):
    batch = dict(seam(tmp_path/"a", None), latent=X)
    loss, parts = seam_loss(BLIND, batch, Draws(0, 0, 5), .5)
    assert parts["seam"] < 1e-8 and loss > 0


def test_costs_are_counted():
    for scale, calls in ((1., 1), (2., 2)):
        cost = sampling_cost(TwoModels(SMALL, LARGE, .7), (4, 4, 4), 3, Y[:3], 1, n_steps=10, cfg_scale=scale)
        assert (cost["small"], cost["large"]) == (7*calls, 3*calls) and cost["seconds"] > 0
    ends = [sampling_cost(TwoModels(SMALL, LARGE, s), (4, 4, 4), 3, Y[:3], 1, n_steps=10)["macs"] for s in (0., .7, 1.)]
    assert ends[1] == pytest.approx(.3*ends[0] + .7*ends[2])
    assert not SMALL._forward_pre_hooks and not LARGE._forward_pre_hooks


def test_noise_decides_the_sample_whatever_the_pair():
    shape, ids = (4, 4, 4), [3, 1]
    one = sample_latents(TwoModels(SMALL, LARGE, .6), ids, shape, 0, Y[:2], progress=False, n_steps=5)
    other = sample_ode(TwoModels(SMALL, LARGE, .6), sample_noise(ids, shape, 0), Y[:2], n_steps=5)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["euler", "heun", "dopri5"])
def test_at_its_ends_the_pair_is_one_model(method):
    small, large = (DiT(4, 2, 2, 16, 1, 2, num_classes=0, learn_sigma=False) for _ in range(2))
    for p in [*small.parameters(), *large.parameters()]: nn.init.normal_(p, std=0.3)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for switch, alone in ((0.0, large), (1.0, small)):
        steps = None if method == "dopri5" else 7
        pair, one = (sample_ode(m, x, n_steps=steps, method=method) for m in (TwoModels(small, large, switch), alone))
        torch.testing.assert_close(pair, one, rtol=0, atol=0)


def test_a_seam_that_is_not_there_or_of_before(tmp_path):
    with pytest.raises(FileNotFoundError, match="write_seam"): load_seam(tmp_path)
    model, latents = DiT(4, 2, 2, 16, 1, 2, num_classes=3, learn_sigma=False), np.zeros((4, 2, 4, 4), np.float32)
    write_seam(tmp_path, model, latents, 0.5, np.array([0, 1, 2, 0]), n_steps=2, progress=False)
    assert "seam_free" in load_seam(tmp_path)
    write_seam(tmp_path, DiT(4, 2, 2, 16, 1, 2, num_classes=0, learn_sigma=False), latents, 0.5, n_steps=2, progress=False)
    assert sorted(load_seam(tmp_path)) == ["seam_point", "seam_velocity"]
