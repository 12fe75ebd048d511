"""timm models of several families and sizes, with random weights."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from sae import vit
from sae.autoencoder import SAEConfig, SparseAutoencoder
from sae.errors import InputError
from sae.geometry import Geometry, select

MODELS = [
    # name, input size, width, prefix tokens, rows and columns of patches
    ("vit_tiny_patch16_224", 96, 192, ("class",), (6, 6)),
    ("vit_small_patch32_224", None, 384, ("class",), (7, 7)),
    ("deit_tiny_patch16_224", 64, 192, ("class",), (4, 4)),
    ("deit_tiny_distilled_patch16_224", 64, 192, ("class", "distillation"), (4, 4)),
    ("vit_small_patch14_reg4_dinov2", 70, 384, ("class",) + ("register",) * 4, (5, 5)),
    ("vit_base_patch16_siglip_224", 64, 768, (), (4, 4)),
    ("eva02_tiny_patch14_224", 56, 192, ("class",), (4, 4)),
    ("beit_base_patch16_224", 32, 768, ("class",), (2, 2)),
    ("vit_small_patch16_dinov3", 48, 384, ("class",) + ("register",) * 4, (3, 3)),
    ("vit_relpos_small_patch16_224", 48, 384, (), (3, 3)),
]


@pytest.fixture(scope="module", params=MODELS, ids=lambda m: m[0])
def case(request):
    return request.param, vit.load(request.param[0], "random", request.param[1])


def test_geometry_is_read_from_the_model(case):
    (_, size, width, prefix, patches), model = case
    g = vit.geometry(model)
    assert (g.width, g.prefix, g.patches) == (width, prefix, patches)
    assert g.side == ((size, size) if size else (224, 224))
    assert len(g.roles) == len(prefix) + patches[0] * patches[1]


def test_a_layer_is_the_output_of_its_block(case):
    (_, _, width, _, _), model = case
    g = vit.geometry(model)
    x = torch.randn(2, 3, *g.side)
    seen = {}
    handles = [
        b.register_forward_hook(lambda _m, _i, o, n=n: seen.setdefault(n, o)) for n, b in enumerate(model.blocks)
    ]
    with torch.no_grad():
        model(x)
        for handle in handles:
            handle.remove()
        for layer in (0, g.blocks - 1):
            tokens = vit.read(model, x, layer)
            assert tokens.shape == (2, len(g.roles), width)
            assert torch.equal(tokens, seen[layer])


def test_reading_stops_at_the_layer_and_leaves_the_model_as_it_was(case):
    _, model = case
    g = vit.geometry(model)
    ran = []
    handle = model.blocks[3].register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad():
        vit.read(model, torch.randn(1, 3, *g.side), 2)
    assert not ran
    handle.remove()
    assert not any(block._forward_hooks for block in model.blocks)


def test_resuming_from_a_layer_is_the_whole_forward_pass(case):
    _, model = case
    g = vit.geometry(model)
    x = torch.randn(2, 3, *g.side)
    with torch.no_grad():
        whole = model(x)
        for layer in (0, 5, g.blocks - 1):
            torch.testing.assert_close(vit.resume(model, vit.read(model, x, layer), layer), whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(x), whole)


def test_splicing_replaces_the_chosen_tokens_only(case):
    _, model = case
    g = vit.geometry(model)
    x = torch.randn(2, 3, *g.side)
    zero = SparseAutoencoder(SAEConfig(g.width, 10, 2)).eval().requires_grad_(False)  # reconstructs 0
    with torch.no_grad():
        before = vit.read(model, x, 4)
        for tokens in ("patches", "all"):
            with vit.splice(model, 4, zero, tokens):
                after = vit.read(model, x, 4)
                changed = model(x)
            assert (after[:, g.select(tokens)] == 0).all()
            if tokens == "patches":
                torch.testing.assert_close(after[:, : len(g.prefix)], before[:, : len(g.prefix)])
            torch.testing.assert_close(changed, vit.resume(model, after, 4), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(vit.read(model, x, 4), before)


def test_pixels_and_normalisation_are_timms_own(case):
    (name, *_), model = case
    g = vit.geometry(model)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    pixels = vit.pixel_transform(model)(image)
    assert pixels.shape == (3, *g.side) and pixels.dtype == np.uint8
    config = timm.data.resolve_model_data_config(model) | {"input_size": (3, *g.side)}
    theirs = timm.data.create_transform(**config, is_training=False)(image)
    ours = vit.normalise(model)(pixels.transpose(1, 2, 0)[None])[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert name


def test_constants_differ_between_models():
    half, imagenet = (vit.load(n, "random", 32) for n in ("vit_tiny_patch16_224", "deit_tiny_patch16_224"))
    grey = np.full((1, 32, 32, 3), 128, np.uint8)
    assert abs(float(vit.normalise(half)(grey).mean())) < 0.01
    assert abs(float(vit.normalise(imagenet)(grey).mean())) > 0.1


def test_positions():
    g = Geometry(12, 192, ("class", "register"), (3, 4), (48, 64), 0)
    assert g.count == 12
    rows, columns = g.position(np.array([0, 1, 2, 5, 6, 13]))
    assert rows.tolist() == [-1, -1, 0, 0, 1, 2]
    assert columns.tolist() == [-1, -1, 0, 3, 0, 3]
    assert g.select("class") == slice(0, 1)
    with pytest.raises(InputError, match="no class token"):
        select((), "class")
    assert select((), "patches") == slice(0, None)


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b = (vit.load("vit_tiny_patch16_224", "random", 32).head.weight for _ in range(2))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(torch.rand(1), expected)


def test_local_checkpoints_are_loaded(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", img_size=64)
    path = tmp_path / "weights.pth"
    torch.save({"model": source.state_dict()}, path)
    model = vit.load("timm/vit_tiny_patch16_224", path, 64)
    torch.testing.assert_close(model.blocks[7].mlp.fc1.weight.data, source.blocks[7].mlp.fc1.weight.data)
    larger = vit.load("vit_tiny_patch16_224", path, 96)  # positions are resampled
    assert vit.geometry(larger).patches == (6, 6)


def test_a_checkpoint_fine_tuned_on_other_classes_brings_its_head(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7)
    save_file(source.state_dict(), tmp_path / "mine.safetensors")
    model = vit.load("vit_tiny_patch16_224", tmp_path / "mine.safetensors", 32)
    assert vit.geometry(model).outputs == 7
    assert vit.class_names(model) == {}


@pytest.mark.parametrize("prefix", ["", "model.", "module.backbone."])
def test_weights_without_a_head_and_with_a_prefix_are_loaded(tmp_path, prefix):
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    weights = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "mine.ckpt")
    model = vit.load("vit_tiny_patch16_224", tmp_path / "mine.ckpt", 32)
    assert vit.geometry(model).outputs == 0
    torch.testing.assert_close(model.blocks[7].mlp.fc1.weight.data, source.blocks[7].mlp.fc1.weight.data)


@pytest.mark.parametrize("side", [8, 100, 225])
def test_a_size_that_is_no_multiple_of_the_patches_is_refused(side):
    with pytest.raises(InputError, match=f"model.image_size {side}: patches are 16 pixels wide"):
        vit.load("vit_tiny_patch16_224", "random", side)


def test_a_model_that_does_not_fit_is_explained(tmp_path):
    save_file(timm.create_model("vit_tiny_patch16_224", img_size=32).state_dict(), tmp_path / "tiny.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file(timm.create_model("vit_tiny_patch16_224", patch_size=32).state_dict(), tmp_path / "coarse.safetensors")
    cases = [
        (("vit_tiny_patch16_224", tmp_path / "nothing.pth"), "no such file"),
        (("vit_small_patch16_224", tmp_path / "tiny.safetensors", 32), "does not fit"),
        (("vit_tiny_patch16_224", tmp_path / "other.safetensors"), "does not fit"),
        (("vit_tiny_patch16_224", tmp_path / "coarse.safetensors"), "its patches are 32 pixels wide, the model's 16"),
        (("vit_tiny_patch15_224", "random"), "no such model; near it: vit_tiny_patch16_224"),
        (("google/vit-base-patch16-224", "random"), "no such model; near it: vit_base_patch16_224$"),
        (("resnet18", "random"), "not a plain Vision Transformer"),
        (("swin_tiny_patch4_window7_224", "random"), "not a plain Vision Transformer"),
        (("cait_xxs24_224", "random"), "not a plain Vision Transformer"),  # its class token joins after the blocks
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            vit.load(*arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"layer 14: this model has blocks 0\.\.11"):
        vit.read(vit.load("vit_tiny_patch16_224", "random", 32), torch.zeros(1, 3, 32, 32), 14)


def test_heads_name_their_outputs():
    names = vit.class_names(vit.load("vit_tiny_patch16_224", "random", 32))
    assert names["label"][281] == "n02123045"
    assert vit.class_names(vit.load("vit_small_patch14_reg4_dinov2", "random", 70)) == {}


@pytest.mark.parametrize("size", [(401, 20), (20, 400), (60_000, 1)])
def test_a_strip_is_cut_before_it_is_scaled_up(size, monkeypatch):
    asked = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, to, *a, **k: asked.append(to) or resize(self, to, *a, **k))
    model = vit.load("vit_tiny_patch16_224", "random", 32)
    ramp = np.linspace(0, 255, max(size)).astype(np.uint8)
    line = ramp[None] if size[0] > size[1] else ramp[:, None]
    strip = Image.fromarray(np.broadcast_to(line, size[::-1]).copy()).convert("RGB")
    seen = vit.pixel_transform(model)(strip)
    assert max(map(max, asked)) <= 9 * 36  # 36: the shorter side before the crop
    whole = timm.data.create_transform(**vit._data_config(model), is_training=False, use_prefetcher=True)
    if max(size) < 1000:
        np.testing.assert_allclose(seen.astype(float), np.asarray(whole(strip)).astype(float), atol=3)


def test_latents_are_ablated_and_steered_by_themselves(case):
    (_, _, width, _, _), model = case
    g = vit.geometry(model)
    x = torch.randn(2, 3, *g.side)
    torch.manual_seed(1)
    dictionary = SparseAutoencoder(SAEConfig(width, 30, 6, tokens="patches"), torch.randn(width), 0.7)
    for parameter in (dictionary.W_enc, dictionary.W_dec, dictionary.b_dec):
        parameter.data.normal_()
    dictionary.eval().requires_grad_(False)
    with torch.no_grad():
        clean = vit.read(model, x, 4)
        tokens = clean[:, g.select("patches")]
        z = dictionary.encode(tokens)
        first, second = z.sum((0, 1)).argsort(descending=True)[:2].tolist()
        wanted = z.clone()
        wanted[..., first], wanted[..., second] = 0, 5.0

        def after(**options):
            with vit.splice(model, 4, dictionary, **options):
                return vit.read(model, x, 4)[:, g.select("patches")]

        change = {"ablate": [first], "steer": {second: 5.0}}
        torch.testing.assert_close(after(), dictionary.decode(z), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after(**change), dictionary.decode(wanted), rtol=1e-4, atol=1e-4)
        assert torch.equal(after(keep_error=True), tokens)
        moved = dictionary.decode(wanted) - dictionary.decode(z)
        torch.testing.assert_close(after(**change, keep_error=True), tokens + moved, rtol=1e-4, atol=1e-4)
        assert torch.equal(vit.read(model, x, 4), clean)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ablate": [30]}, r"latent 30: this SAE has latents 0\.\.29"),
        ({"steer": {-1: 2.0}}, r"latent -1: this SAE has latents 0\.\.29"),
        ({"ablate": [1.5]}, r"latent 1\.5: this SAE has"),
        ({"ablate": [3], "steer": {3: 1.0}}, "latent 3: it cannot be ablated and steered"),
        ({"tokens": "cls"}, "tokens cls: must be one of patches, class, all"),
        ({"sae": SparseAutoencoder(SAEConfig(192, 30, 6)).to("meta")}, "the SAE is on meta, the ViT on cpu"),
        ({"layer": 12}, r"layer 12: this model has blocks 0\.\.11"),
        ({"sae": SparseAutoencoder(SAEConfig(10, 20, 2))}, "an SAE of width 10 does not fit a ViT of width 192"),
    ],
)
def test_what_cannot_be_spliced_is_told(options, told):
    model = vit.load("vit_tiny_patch16_224", "random", 32)
    given = {"layer": 4, "sae": SparseAutoencoder(SAEConfig(192, 30, 6))} | options
    with pytest.raises(InputError, match=told), vit.splice(model, **given):
        pass
    assert not any(block._forward_hooks for block in model.blocks)


def test_latents_may_be_numbered_by_tensors_and_autocast_leaves_the_sae_as_it_is():
    model = vit.load("vit_tiny_patch16_224", "random", 32)
    dictionary = SparseAutoencoder(SAEConfig(192, 30, 6))
    dictionary.W_enc.data.normal_()
    dictionary.W_dec.data.normal_()
    x = torch.randn(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16), vit.splice(model, 4, dictionary, ablate=torch.tensor([3, 4])):
        low = model(x)
    with vit.splice(model, 4, dictionary, ablate=[3, 4]):
        torch.testing.assert_close(low.float(), model(x), rtol=0.1, atol=0.1)
