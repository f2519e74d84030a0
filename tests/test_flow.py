"Flow matching: path, loss, noise by identity, guidance, solvers."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdiffeq import odeint

from diffprune.models.dit import DiT
from diffprune.models.flow import (
    flow_matching_loss,
    guided_velocity,
    interpolate,
    predict_velocity,
    sample_latents,
    sample_noise,
    sample_ode,
    velocity,
)


def model(seed=0, **kw):
    g = torch.Generator().manual_seed(seed)
    small = dict(input_size=4, patch_size=2, in_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=3, learn_sigma=False)
    m = DiT(**small | kw)
    for p in m.parameters():
        if p.requires_grad: p.data = torch.randn(p.shape, generator=g) * .3
    return m.requires_grad_(False)

def batch(n=5, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, 4, 4, generator=g), torch.rand(n, generator=g), torch.randint(3, (n,), generator=g)

@given(t=st.floats(0, 1), shape=st.sampled_from([(3,), (2, 4), (1, 2, 3)]))
@settings(max_examples=40, deadline=None)
def test_path_formula_for_any_shape(t, shape):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, *shape, generator=g, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(interpolate(a, b, torch.full((2,), t, dtype=torch.float64)), (1 - t) * a + t * b)
    torch.testing.assert_close(interpolate(a, b, torch.zeros(2)) + velocity(a, b), b)

def test_each_sample_has_its_own_time():
    out = interpolate(torch.zeros(3, 2), torch.ones(3, 2), torch.tensor([0., .5, 1.]))
    assert out.tolist() == [[0, 0], [.5, .5], [1, 1]]

def test_loss_is_per_sample_and_independent_of_the_batch():
    m, (x_1, t, y) = model(), batch()
    x_0 = torch.randn_like(x_1)
    whole = flow_matching_loss(m, x_1, x_0, t, y)
    assert whole.shape == (5,)
    alone = torch.cat([flow_matching_loss(m, x_1[i:i+1], x_0[i:i+1], t[i:i+1], y[i:i+1]) for i in range(5)])
    torch.testing.assert_close(whole, alone)
    expected = (m(interpolate(x_0, x_1, t), t, y) - (x_1 - x_0)).square().mean((1, 2, 3))
    torch.testing.assert_close(whole, expected)

def test_loss_passes_dropped_labels_on():
    m, (x_1, t, y) = model(), batch()
    kw = dict(x_1=x_1, x_0=torch.zeros_like(x_1), t=t, y=y)
    assert torch.equal(flow_matching_loss(m, **kw, force_drop_ids=torch.ones(5)), flow_matching_loss(m, **{**kw, "y": torch.full((5,), 3)}))

def test_learned_variance_is_dropped_and_gets_no_gradient():
    m, (x, t, y) = model(learn_sigma=True), batch()
    m.requires_grad_(True)
    assert torch.equal(predict_velocity(m, x, t, y), m(x, t, y)[:, :4])
    flow_matching_loss(m, x, torch.zeros_like(x), t, y).mean().backward()
    g = m.final_layer.linear.weight.grad.view(2, 2, 8, -1)
    assert not g[:, :, 4:].any() and g[:, :, :4].abs().sum() > 0

ids = st.one_of(st.integers(-10**6, 10**12), st.text(max_size=12))
@given(many=st.lists(ids, min_size=1, max_size=8), seed=st.integers(-5, 2**40), cut=st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_noise_depends_on_seed_and_id_alone(many, seed, cut):
    whole = sample_noise(many, (3,), seed)
    parts = torch.cat([sample_noise(many[:cut], (3,), seed), sample_noise(many[cut:], (3,), seed)])
    assert torch.equal(whole, parts)
    assert torch.equal(sample_noise(many[::-1], (3,), seed), whole.flip(0))
    keys = [str(i) for i in many]
    assert len(torch.unique(whole, dim=0)) == len(set(keys))

def test_noise_leaves_global_generators_alone():
    torch.manual_seed(0); a = torch.rand(1)
    torch.manual_seed(0); np_state = np.random.get_state()[1].copy(); sample_noise(range(3), (2,), 0)
    assert torch.equal(torch.rand(1), a) and (np.random.get_state()[1] == np_state).all()

def test_noise_values_are_pinned():
    "Changing the generator would change every published sample; this must be deliberate."
    assert np.allclose(sample_noise(["a", 0], (3,), 0).numpy(), PINNED, atol=1e-6)

PINNED = [[0.170454, 1.845825, 0.014944], [0.462318, 0.238229, -0.697659]]

@pytest.mark.parametrize("bad", [[1.5], [None], [True], [b"x"]])
def test_bad_ids(bad):
    with pytest.raises(ValueError, match="an id must be an integer or a string"): sample_noise(bad, (2,), 0)

@pytest.mark.parametrize("scale", [0., .5, 1., 4.])
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_guidance_against_two_separate_calls(scale, channels):
    m, (x, t, y) = model(), batch()
    cond, free = m(x, t, y), m(x, t, torch.full_like(y, 3))
    expected = free + scale * (cond - free)
    if channels is not None: expected[:, channels:] = cond[:, channels:]
    torch.testing.assert_close(guided_velocity(m, x, t, y, scale, channels), expected, atol=1e-5, rtol=1e-4)

def test_official_three_channel_guidance():
    "The official layout: one batch holding every sample twice, labels first, then null labels; eps of three channels is mixed."
    m, (x, t, y) = model(learn_sigma=True), batch()
    out = m(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, torch.full_like(y, 3)]))
    eps, rest = out[:, :3], out[:, 3:]
    half = eps[5:] + 4. * (eps[:5] - eps[5:])
    official = torch.cat([half, rest[:5]], 1)[:, :4]
    torch.testing.assert_close(guided_velocity(m, x, t, y, 4., channels=3), official)

def test_scale_one_needs_no_null_label():
    m, (x, t, y) = model(class_dropout_prob=0.), batch()
    assert torch.equal(guided_velocity(m, x, t, y), m(x, t, y))
    with pytest.raises(ValueError, match="class_dropout_prob=0"): guided_velocity(m, x, t, y, 2.)

@pytest.mark.parametrize("method, kw", [("euler", dict(n_steps=7)), ("heun", dict(n_steps=7)), ("dopri5", dict(rtol=1e-4, atol=1e-4))])
def test_solvers_are_deterministic_and_keep_type(method, kw):
    m, (x, _, y) = model(), batch()
    a, b = (sample_ode(m, x, y, method=method, **kw) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == x.dtype and not a.requires_grad

def test_euler_and_heun_against_loops_written_out():
    m, (x, _, y) = model(), batch()
    v = lambda x, t: m(x, torch.full((5,), t), y)
    e, h, n = x, x, 9
    for i in range(n):
        e = e + v(e, i / n) / n
        k = v(h, i / n)
        h = h + (k + v(h + k / n, (i + 1) / n)) / (2 * n)
    torch.testing.assert_close(sample_ode(m, x, y, n_steps=n), e, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sample_ode(m, x, y, method="heun", n_steps=n), h, atol=1e-4, rtol=1e-4)

@pytest.mark.parametrize("n_steps", [1, 3, 10, 49, 50, 93, 107])
def test_exact_number_of_evaluations(n_steps):
    times = []
    def field(x, t, y=None, d=None): times.append(t[0].item()); return torch.ones_like(x)
    out = sample_ode(field, torch.zeros(2, 1, 1, 1), n_steps=n_steps)
    assert len(times) == n_steps and times[0] == 0 and times[-1] < 1
    torch.testing.assert_close(out, torch.ones_like(out))

def test_dopri5_meets_its_tolerance_for_the_worst_sample():
    speeds = torch.tensor([0.] * 63 + [8.], dtype=torch.float64).view(-1, 1, 1, 1)
    field = lambda x, t, y=None, d=None: speeds * x
    x = torch.ones(64, 1, 2, 2, dtype=torch.float64)
    out = sample_ode(field, x, method="dopri5", rtol=1e-6, atol=1e-6)
    usual = odeint(lambda t, x: speeds * x, x, torch.tensor([0., 1.], dtype=torch.float64), method="dopri5", rtol=1e-6, atol=1e-6)[-1]
    error = lambda z: (z[-1] / torch.tensor(8.).double().exp() - 1).abs().max()
    assert error(out) < 1e-5 and error(out) < error(usual)

def test_samples_follow_their_id():
    m = model()
    y = torch.tensor([0, 1, 2, 0, 1])
    whole = sample_latents(m, ["a", "b", "c", "d", "e"], (4, 4, 4), 0, y, progress=False, n_steps=4)
    some = sample_latents(m, ["d", "b"], (4, 4, 4), 0, y[[3, 1]], batch_size=1, progress=False, n_steps=4)
    torch.testing.assert_close(some, whole[[3, 1]], atol=1e-5, rtol=1e-5)
    assert sample_latents(m, [], (4, 4, 4), 0, y[:0], progress=False).shape == (0, 4, 4, 4)

@pytest.mark.parametrize("kw, message", [(dict(method="rk4"), "unknown method 'rk4'"), (dict(method="dopri5", n_steps=3), "n_steps is for"),
    (dict(atol=1e-3), "rtol and atol"), (dict(n_steps=0), "at least 1"), (dict(cfg_scale=2.), "needs labels"),
    (dict(channels=9), "channels must be")])
def test_bad_settings(kw, message):
    with pytest.raises(ValueError, match=message): sample_ode(model(num_classes=0), torch.zeros(1, 4, 4, 4), **kw)
