"""A GPU gives what the CPU gives, within stated tolerances: `pytest -m gpu`, or all of it with `make gpu`.

With DIFFPRUNE_TEST_DEVICE=cpu, the CPU is compared with itself, which shows on a machine without a GPU that the comparisons run.
Differences are relative to the largest value expected, and each is kept as a property of its test.
"""
import os

import numpy as np
import pytest
import torch
from torch import nn

from diffprune.features.cluster import KMeans, lloyd
from diffprune.features.embed import Backbone, Preprocessing, embed_images
from diffprune.metrics import evaluate as M
from diffprune.metrics.neighbours import nearest
from diffprune.models.dit import dit_model
from diffprune.models.flow import flow_matching_loss, sample_noise, sample_ode
from diffprune.models.train import Draws, TrainConfig, Trainer, diffusion_loss, seeded
from diffprune.models.vqvae import VQVAE, VQVAEConfig, decode_latents, encode_images, to_float, vqvae_loss
from diffprune.pruning.gradients import sample_gradients
from diffprune.pruning.probes import ProbeGrid, ProbeSet, probe_losses, probe_moso, probe_norms

DEVICE = os.environ.get("DIFFPRUNE_TEST_DEVICE", "cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(autouse=True)
def exact_float32():
    "Neither products nor convolutions round to TF32, as the latter do by default."
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def close(record_property):
    "close(name, found, expected, tolerance): the largest difference, relative to the largest value expected, is within the tolerance."
    def check(name, found, expected, tolerance):
        found, expected = (torch.as_tensor(v if torch.is_tensor(v) else np.array(v)).detach().cpu().double() for v in (found, expected))
        assert found.shape == expected.shape
        difference = ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item()
        record_property(name, (difference, tolerance))
        assert difference <= tolerance, f"{name}: {difference:.2e}, more than {tolerance:g}"  # NaN fails, too
    return check


def model(name="DiT-T/2", size=8, classes=10):
    "A model on the CPU with no weight zero."
    with seeded(0):
        m = dit_model(name, input_size=size, num_classes=classes, learn_sigma=False, depth=2)
        for p in m.parameters():
            if p.requires_grad: p.data += torch.randn_like(p) * .02
    return m


def arguments(n=8, size=8):
    g = torch.Generator().manual_seed(1)
    x_1, x_0 = torch.randn(2, n, 4, size, size, generator=g)
    return dict(x_1=x_1, x_0=x_0, t=torch.rand(n, generator=g), y=torch.arange(n) % 10)


def on(device, tensors): return {k: v.to(device) for k, v in tensors.items()}


def samples(n=24):
    return ProbeSet(torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(2)).numpy(), np.arange(n), np.arange(n) % 10)


def training_set(n=64):
    g = torch.Generator().manual_seed(3)
    return dict(latent=torch.randn(n, 4, 8, 8, generator=g), label=torch.arange(n) % 10)


def trained(device, workdir=None, on_step=None, **settings):
    "A `Trainer` and its log after some steps."
    cfg = TrainConfig(**dict(dict(steps=20, batch_size=16, lr=1e-3, ema_decay=.9, log_every=1, checkpoint_every=5), **settings))
    trainer = Trainer(model("DiT-N/2"), diffusion_loss, training_set(), cfg, workdir, "cpu" if device == "cpu" else None, on_step)
    assert trainer.device.type == torch.device(device).type
    return trainer, trainer.fit(progress=False)


def test_noise_and_draws_are_the_same_numbers(close):
    close("noise", sample_noise(["a", "b"], (4, 8, 8), 0, DEVICE), sample_noise(["a", "b"], (4, 8, 8), 0), 0)
    close("draws", Draws(0, 7, 16, device=DEVICE).randn(4, 8, 8), Draws(0, 7, 16).randn(4, 8, 8), 0)


def test_loss_output_and_gradients(close):
    def measured(device):
        m, a = model().to(device), on(device, arguments())
        loss = flow_matching_loss(m, **a)
        gradient = torch.autograd.grad(loss.mean(), [p for p in m.parameters() if p.requires_grad])
        return dict(loss=loss, output=m(a["x_1"], a["t"], a["y"]), gradient=torch.cat([g.flatten() for g in gradient]))
    found, expected = measured(DEVICE), measured("cpu")
    for name, tolerance in (("loss", 1e-5), ("output", 1e-5), ("gradient", 1e-4)): close(name, found[name], expected[name], tolerance)


@pytest.mark.parametrize("solver, tolerance", [
    (dict(method="euler", n_steps=10), 1e-4), (dict(method="heun", n_steps=4, cfg_scale=2.), 1e-4),
    (dict(method="dopri5"), 1e-3)], ids=["euler", "heun", "dopri5"])
def test_samples(close, solver, tolerance):
    m, x_0, y = model().eval(), arguments()["x_0"], arguments()["y"]
    expected = sample_ode(m, x_0, y, **solver)
    close("samples", sample_ode(m.to(DEVICE), x_0.to(DEVICE), y.to(DEVICE), **solver), expected, tolerance)


def test_losses_of_a_training(close):
    expected = trained("cpu")[1]
    log = trained(DEVICE)[1]
    close("loss", log.loss.to_numpy(), expected.loss.to_numpy(), 1e-3)
    close("gradient norm", log.grad_norm.to_numpy(), expected.grad_norm.to_numpy(), 1e-2)


def test_a_training_that_was_interrupted_goes_on_as_if_it_had_not_been(close, tmp_path):
    class Stop(Exception): pass
    def stop(trainer):
        if trainer.step == 12: raise Stop
    whole = trained(DEVICE, tmp_path / "whole")[0]
    with pytest.raises(Stop): trained(DEVICE, tmp_path / "halved", stop)
    halved = trained(DEVICE, tmp_path / "halved")[0]
    assert [r["step"] for r in halved.log] == list(range(1, 21))
    flat = lambda m: torch.cat([p.detach().cpu().flatten() for p in m.parameters()])
    close("weights", flat(halved.model), flat(whole.model), 1e-4)
    close("averages", flat(halved.averaged), flat(whole.averaged), 1e-4)


def test_norms_and_products_of_gradients_are_exact(close):
    m, a = model(), arguments()
    params = {n: p for n, p in m.named_parameters() if p.requires_grad}
    along = {n: torch.randn(p.shape, generator=torch.Generator().manual_seed(5)) for n, p in params.items()}
    m64, exact = model().double(), []
    for i in range(len(a["t"])):
        one = {k: v[i:i + 1].double() if v.is_floating_point() else v[i:i + 1] for k, v in a.items()}
        g = torch.autograd.grad(flow_matching_loss(m64, **one).sum(), [p for p in m64.parameters() if p.requires_grad])
        exact.append([sum(v.square().sum() for v in g).sqrt(), sum((v * d).sum() for v, d in zip(g, along.values()))])
    norms, dots = torch.tensor(exact, dtype=torch.float64).T
    m, b = m.to(DEVICE), on(DEVICE, a)
    found = sample_gradients(m, lambda: flow_matching_loss(m.forward, **b), on(DEVICE, along))
    close("norm", found.norm, norms, 1e-4)
    close("product", found.dot, dots, 1e-4)


def check_probes(close, compiled):
    m, grid, how = model("DiT-N/2"), ProbeGrid((.5, .9), 1), dict(progress=False, batch_size=12)
    measured = lambda device, compiled: dict(
        losses=probe_losses(m, samples(), grid, device=device, progress=False),
        norms=probe_norms(m, samples(), grid, device=device, compiled=compiled, **how)[1],
        moso=probe_moso(m, samples(), grid, device=device, compiled=compiled, **how))
    expected = measured("cpu", False)
    m.to(DEVICE)
    found = measured(DEVICE, compiled)
    for name, tolerance in (("losses", 1e-5), ("norms", 1e-4), ("moso", 1e-3)): close(name, found[name], expected[name], tolerance)


def test_probes(close): check_probes(close, compiled=False)


def test_probes_in_bf16(close):
    m, grid = model(), ProbeGrid((.9,), 2)
    expected = probe_norms(m, samples(), grid, progress=False)[1]
    found = probe_norms(m.to(DEVICE), samples(), grid, device=DEVICE, dtype=torch.bfloat16, progress=False)[1]
    close("norms", found, expected, 3e-2)


def test_k_means(close, record_property):
    import faiss
    X = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
    start = X[:20].copy()
    expected = lloyd(X, start)[1][-1]
    record_property("GPUs that faiss has", faiss.get_num_gpus())
    close("inertia", KMeans(20, init=start).fit(X).inertia_history_[-1], expected, 1e-2)


def test_neighbours_are_the_same(close):
    X = np.random.default_rng(0).standard_normal((500, 64), dtype=np.float32)
    found, expected = nearest(X, X, 3, same=True, device=DEVICE), nearest(X, X, 3, same=True, device="cpu")
    close("indices", found.indices, expected.indices, 0)
    close("distances", found.distances, expected.distances, 0)


def test_metrics_and_their_intervals_are_the_same(record_property):
    rng = np.random.default_rng(1)
    generated, real = rng.standard_normal((300, 32), dtype=np.float32), rng.standard_normal((400, 32), dtype=np.float32) + 0.1
    generated[:60] = real[:60]                                                     # copies, so that distances of zero occur
    found, expected = (M.measure(generated, real, generated[:, :9], n_draws=12, device=device) for device in (DEVICE, "cpu"))
    record_property("metrics that differ", [k for k in expected if found[k] != expected[k]])
    assert found == expected


def test_autoencoder(close, tmp_path):
    cfg = VQVAEConfig(base_channels=8, channel_mult=(1, 2, 2), n_res_blocks=1, codebook_size=64)
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 16, 16), dtype=np.uint8)
    loss = lambda m, batch, draws: vqvae_loss(m, dict(image=to_float(batch["image"])), draws)
    settings, found = TrainConfig(steps=10, batch_size=16, lr=1e-3, ema_decay=None, log_every=1), []
    for device in ("cpu", DEVICE):
        with seeded(0): net = VQVAE(cfg)
        found.append(Trainer(net, loss, dict(image=images), settings, None, "cpu" if device == "cpu" else None).fit(progress=False).loss)
    close("loss", found[1].to_numpy(), found[0].to_numpy(), 1e-2)
    net = net.eval()
    made = {}
    for i, device in enumerate(("cpu", DEVICE)):
        z = encode_images(net.to(device), images, tmp_path / f"{i}.npy", device=device, progress=False)
        made[i] = np.array(z), decode_latents(net, np.array(made[0][0] if i else z), device=device, progress=False).astype(np.int64)
    close("latents", made[1][0], made[0][0], 1e-4)
    close("images", made[1][1], made[0][1], 1/128)  # of 255: at most one level


@pytest.mark.parametrize("tf32, tolerance", [(False, 1e-5), (True, 1e-2)], ids=["float32", "TF32 convolutions"])
def test_features(close, tf32, tolerance):
    import timm
    torch.backends.cudnn.allow_tf32 = tf32
    class Features(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, x): return self.net(x), None
    with seeded(0): net = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    backbone = Backbone("lite0", Features(net), Preprocessing(64, "bicubic", (.5,)*3, (.5,)*3), 1280, 64)
    images = np.random.default_rng(0).integers(0, 256, (16, 3, 32, 32), dtype=np.uint8)
    expected = embed_images(backbone, images, progress=False)
    close("features", embed_images(backbone.to(DEVICE), images, progress=False), expected, tolerance)


def test_bf16_and_compiled_training_learns_alike(close):
    "The mean loss of the last 10 of 60 steps."
    plain, fast = (trained(DEVICE, steps=60, **kw)[1] for kw in (dict(), dict(precision="bf16", compile=True)))
    close("last loss", fast.loss[-10:].mean(), plain.loss[-10:].mean(), 3e-2)


def test_compiled_probes(close): check_probes(close, compiled=True)
