"VQ-VAE: exact resume, evaluation mode, normalisation, bad input."
import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from vector_quantize_pytorch import VectorQuantize

from diffprune.core.checks import to_uint8
from diffprune.models.vqvae import (
    VQVAE,
    VQVAE_CONFIGS,
    LatentNorm,
    VQVAEConfig,
    decode_latents,
    encode_images,
    perplexity,
    to_float,
    vqvae_loss,
)

TINY = VQVAEConfig(base_channels=4, channel_mult=(1, 2), n_res_blocks=1, codebook_size=16, ema_decay=.8)
IMAGES = np.random.default_rng(0).integers(0, 256, (48, 3, 8, 8), dtype=np.uint8)

def train(model, opt, start, stop):
    for step in range(start, stop):
        batch = dict(image=to_float(IMAGES[(np.arange(16) + 7 * step) % 48]))
        loss, logs = vqvae_loss(model, batch)
        opt.zero_grad(); loss.backward(); opt.step()
    return logs

def fresh(cfg=TINY):
    torch.manual_seed(0)
    model = VQVAE(cfg)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

def test_resume_through_safetensors_is_exact(tmp_path):
    straight, opt = fresh(); train(straight, opt, 0, 12)
    model, opt = fresh(); train(model, opt, 0, 5)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    torch.manual_seed(123)
    again = VQVAE(TINY); again.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=True)
    opt_2 = torch.optim.AdamW(again.parameters(), lr=1e-2); opt_2.load_state_dict(copy.deepcopy(opt.state_dict()))
    torch.rand(100)
    train(again, opt_2, 5, 12)
    for k, v in straight.state_dict().items(): assert torch.equal(v, again.state_dict()[k]), k

def test_state_is_plain_tensors():
    state = fresh()[0].state_dict()
    assert {"vq._codebook.embed", "vq._codebook.embed_avg", "vq._codebook.cluster_size", "vq._codebook.initted", "n_updates"} <= set(state)
    assert all(v.is_contiguous() for v in state.values())
    pointers = [v.data_ptr() for v in state.values() if v.numel()]
    assert len(pointers) == len(set(pointers))

def test_copies_are_independent():
    model, opt = fresh(); train(model, opt, 0, 2)
    twin = copy.deepcopy(model)
    train(model, opt, 2, 4)
    assert not torch.equal(twin.codebook, model.codebook) and twin.n_updates == 2

def test_evaluation_changes_nothing_even_before_training():
    model, _ = fresh()
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad(): model(to_float(IMAGES)); vqvae_loss(model, dict(image=to_float(IMAGES)))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

def test_commitment_is_the_package_s_own():
    model, opt = fresh(); train(model, opt, 0, 3)
    own = VectorQuantize(4, 16, decay=.8, kmeans_init=True, rotation_trick=False, accept_image_fmap=True, commitment_weight=1.)
    own.load_state_dict(model.vq.state_dict())
    z = model.encode(to_float(IMAGES)).detach()
    torch.testing.assert_close(model.quantize(z)[2], own(z)[2])

def test_dead_codes_are_revived():
    model, opt = fresh(dataclasses.replace(TINY, dead_code_threshold=1.)); train(model, opt, 0, 3)
    book = model.vq._codebook
    book.embed[:, :10] = 1e3; book.embed_avg[:, :10] = 0; book.cluster_size[:, :10] = 0
    train(model, opt, 3, 4)
    assert book.embed.abs().max() < 100
    frozen, opt = fresh(dataclasses.replace(TINY, dead_code_threshold=0.)); train(frozen, opt, 0, 3)
    frozen.vq._codebook.embed[:, :10] = 1e3; frozen.vq._codebook.embed_avg[:, :10] = 1e3; frozen.vq._codebook.cluster_size[:, :10] = 1
    train(frozen, opt, 3, 4)
    assert frozen.vq._codebook.embed.abs().max() > 100

def test_training_lowers_the_loss():
    model, opt = fresh()
    first = train(model, opt, 0, 1)["reconstruction"]
    assert train(model, opt, 1, 60)["reconstruction"] < .8 * first

def test_codebook_learns_under_autocast_in_single_precision():
    model, _ = fresh()
    with torch.autocast("cpu", dtype=torch.bfloat16): loss, _ = vqvae_loss(model, dict(image=to_float(IMAGES)))
    assert loss.dtype == torch.float32 and model.codebook.dtype == torch.float32 and loss.isfinite()

@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_perplexity_bounds(indices):
    p = perplexity(torch.tensor(indices), 10).item()
    assert 1 - 1e-4 <= p <= len(set(indices)) + 1e-3

def test_more_even_use_means_higher_perplexity():
    assert perplexity(torch.tensor([0, 0, 0, 1]), 2) < perplexity(torch.tensor([0, 0, 1, 1]), 2)

def test_bytes_survive_the_trip():
    assert (to_uint8(to_float(IMAGES)).numpy() == IMAGES).all()
    assert to_uint8(torch.tensor([float("inf"), -float("inf")]), float("inf")).tolist() == [255, 0]

@pytest.mark.parametrize("size, batch", [(8, 5), (8, 48), (8, 100)])
def test_encoding_in_batches(tmp_path, size, batch):
    model, _ = fresh()
    model.train()
    z = encode_images(model, IMAGES, tmp_path / "z.npy", batch_size=batch, progress=False)
    assert z.shape == (48, 4, 4, 4) and z.dtype == np.float32 and model.training
    with torch.no_grad(): np.testing.assert_allclose(z, model.encode(to_float(IMAGES)).numpy(), atol=1e-5)
    assert decode_latents(model, z, batch_size=batch, progress=False).shape == IMAGES.shape

def test_a_failed_encoding_leaves_no_file(tmp_path):
    class Boom(Exception): pass
    model, _ = fresh()
    model.encoder.register_forward_hook(lambda *a: (_ for _ in ()).throw(Boom()))
    with pytest.raises(Boom): encode_images(model, IMAGES, tmp_path / "z.npy", progress=False)
    assert list(tmp_path.iterdir()) == [] and model.training

@given(mean=st.floats(-1e3, 1e3), scale=st.floats(1e-3, 1e3), n=st.integers(2, 40), batch=st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_norm_is_that_of_numpy(mean, scale, n, batch):
    z = (np.random.default_rng(n).standard_normal((n, 2, 3, 3)) * scale + mean)
    norm = LatentNorm.fit(z, batch_size=batch)
    np.testing.assert_allclose(norm.mean, z.mean((0, 2, 3)), rtol=1e-9, atol=1e-9 * scale)
    np.testing.assert_allclose(norm.std, z.std((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(norm.denormalize(norm.normalize(z)), z, rtol=1e-9, atol=1e-9)

def test_norm_round_trips_through_json_and_keeps_types():
    norm = LatentNorm((1., 2.), (3., 4.))
    assert LatentNorm(**json.loads(json.dumps(dataclasses.asdict(norm)))) == norm
    z = torch.randn(2, 2, 3, 3, dtype=torch.bfloat16)
    assert norm.normalize(z).dtype == torch.bfloat16 and norm.normalize(z.float().numpy()).dtype == np.float32

@pytest.mark.parametrize("kw, message", [(dict(std=(0., 1.)), "std positive"), (dict(std=(float("nan"), 1.)), "std positive"),
                                         (dict(mean=(float("inf"), 1.)), "finite"), (dict(std=(1.,)), "differ in length")])
def test_bad_norms(kw, message):
    with pytest.raises(ValueError, match=message): LatentNorm(**{**dict(mean=(0., 0.), std=(1., 1.)), **kw})

def test_bad_configs():
    for kw, message in [(dict(base_channels=0), "at least 1"), (dict(n_res_blocks=0), "n_res_blocks"),
                        (dict(ema_decay=0.), "ema_decay"), (dict(codebook_size=1), "codebook_size")]:
        with pytest.raises(ValueError, match=message): VQVAEConfig(**kw)
    assert VQVAEConfig(channel_mult=[1, 2]).channel_mult == (1, 2)
    with pytest.raises(ValueError, match="divisible by 2"): VQVAE(TINY).encode(torch.zeros(1, 3, 7, 8))


@pytest.mark.parametrize("name, side, channels", [("small-f2", 16, 4), ("small-f4", 8, 4), ("f8-c4", 4, 4), ("f8-c8", 4, 8)])
def test_named_sizes_halve_as_often_as_they_say(name, side, channels):
    small = dataclasses.replace(VQVAE_CONFIGS[name], base_channels=8)
    assert VQVAE(small).eval().encode(torch.zeros(1, 3, 32, 32)).shape == (1, channels, side, side)
