"VAE and GAN: shapes, losses, exact resume in the common loop, sampling by identity."
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from diffprune.models.baselines import BASELINE_CONFIGS, GAN, VAE, BaselineConfig, GANOutput, VAEOutput, gan_loss, generate_images, vae_loss
from diffprune.models.train import Draws, TrainConfig, Trainer, seeded

TINY = BaselineConfig(image_size=8, base_channels=4, channel_mult=(1, 2), latent_dim=5)
IMAGES = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
KINDS = [(VAE, vae_loss, dict(lr=1e-2)), (GAN, gan_loss, dict(lr=1e-3, betas=(0., .9), grad_clip=None))]

def fresh(kind):
    with seeded(0): return kind(TINY)

@pytest.mark.parametrize("name", BASELINE_CONFIGS)
@pytest.mark.parametrize("kind", [VAE, GAN])
def test_named_sizes(name, kind):
    cfg = BASELINE_CONFIGS[name]
    with torch.device("meta"):
        m = kind(cfg)
        out = m.eval()(torch.empty(2, 3, cfg.image_size, cfg.image_size), torch.empty(2, cfg.latent_dim))
    if kind is VAE: assert out.reconstruction.shape == (2, 3, cfg.image_size, cfg.image_size) and out.mean.shape == (2, cfg.latent_dim)
    else: assert all(v.shape == (2,) for v in out)

@pytest.mark.parametrize("kind, loss, kw", KINDS)
def test_interrupted_training_is_the_same(kind, loss, kw, tmp_path):
    cfg = TrainConfig(steps=8, batch_size=6, checkpoint_every=3, ema_decay=.9, **kw)
    def run(folder, on_step=None):
        return Trainer(fresh(kind), loss, dict(image=IMAGES), cfg, workdir=tmp_path / folder, device="cpu", on_step=on_step)
    straight = run("a"); straight.fit(progress=False)
    class Cut(Exception): pass
    def cut(t):
        if t.step == 5: raise Cut
    with pytest.raises(Cut): run("b", cut).fit(progress=False)
    resumed = run("b"); resumed.fit(progress=False)
    for k, v in straight.model.state_dict().items(): assert torch.equal(v, resumed.model.state_dict()[k]), k
    straight.export(tmp_path / "w.safetensors")
    again = kind(TINY); again.load_state_dict(load_file(tmp_path / "w.safetensors"))
    one, other = (generate_images(model, range(4), 0, progress=False) for model in (again, straight.averaged))
    assert np.array_equal(one, other)

def test_vae_learns():
    cfg = TrainConfig(steps=60, batch_size=8, log_every=10, ema_decay=None, lr=1e-2)
    log = Trainer(fresh(VAE), vae_loss, dict(image=IMAGES[:8]), cfg, device="cpu").fit(progress=False)
    assert log.mse.iloc[-1] < log.mse.iloc[0]

def test_each_player_gets_its_own_gradient_only():
    gan = fresh(GAN).eval()
    noise = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    out = gan(IMAGES[:6], noise)
    d_loss = F.relu(1 - out.real).mean() + F.relu(1 + out.fake).mean()
    grads = torch.autograd.grad(d_loss, list(gan.generator.parameters()), retain_graph=True, allow_unused=True)
    assert all(g is None for g in grads)
    grads = torch.autograd.grad(-out.fooled.mean(), list(gan.discriminator.parameters()), allow_unused=True)
    assert all(g is None for g in grads)
    torch.testing.assert_close(out.fake, out.fooled)

def test_hinge_closed_form():
    class Fixed(torch.nn.Module):
        cfg = TINY
        def forward(self, x, z): return GANOutput(torch.tensor([2., .5]), torch.tensor([-2., 1.]), torch.tensor([-2., 1.]))
    loss, logs = gan_loss(Fixed(), dict(image=IMAGES[:2]), Draws(0, 0, 2))
    assert logs["d_loss"].item() == pytest.approx(.25 + 1.) and logs["g_loss"].item() == pytest.approx(.5)
    assert loss.item() == pytest.approx(1.75)

def test_spectral_norm_converges_to_one():
    gan = fresh(GAN)
    with torch.no_grad():
        for _ in range(60): gan.discriminator(IMAGES)
    for layer in (gan.discriminator[0][0], gan.discriminator[0][2], gan.discriminator[1]):
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() == pytest.approx(1, abs=.02)

def test_posterior_cannot_overflow():
    class Wild(torch.nn.Module):
        def forward(self, x): return torch.full((len(x), 10), 1e4)
    vae = fresh(VAE); vae.encoder = Wild()
    out = vae(IMAGES[:2], torch.randn(2, 5))
    assert isinstance(out, VAEOutput) and out.reconstruction.isfinite().all() and out.log_var.max() == 20

@pytest.mark.parametrize("kind", [VAE, GAN])
def test_samples_follow_their_identity(kind):
    m = fresh(kind).train()
    whole = generate_images(m, ["a", "b", "c", "d", "e"], 0, progress=False)
    some = generate_images(m, ["d", "b"], 0, batch_size=1, progress=False)
    assert whole.dtype == np.uint8 and whole.shape == (5, 3, 8, 8) and m.training
    assert np.abs(some.astype(int) - whole[[3, 1]]).max() <= 1
    assert not np.array_equal(generate_images(m, ["a"], 1, progress=False), whole[:1])
    assert generate_images(m, [], 0, progress=False).shape == (0, 3, 8, 8)

def test_sampling_changes_no_state():
    m = fresh(GAN).train()
    before = copy.deepcopy(m.state_dict())
    generate_images(m, range(3), 0, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())

@pytest.mark.parametrize("kw, message", [(dict(image_size=9), "divisible by 4, got 9"), (dict(base_channels=0), "at least 1"),
                                         (dict(channel_mult=()), "at least 1"), (dict(latent_dim=0), "at least 1")])
def test_bad_sizes(kw, message):
    with pytest.raises(ValueError, match=message): BaselineConfig(**kw)
