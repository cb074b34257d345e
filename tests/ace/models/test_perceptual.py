"""LPIPS and ST-LPIPS, against torchmetrics and a plain computation."""

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import alexnet, vgg16

from ace.models.encoders import NETWORKS, load_encoder

FILTER = torch.tensor([1.0, 2, 1]).outer(torch.tensor([1.0, 2, 1])) / 16


@pytest.fixture
def others(images):
    return (images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(4))).clamp(0, 1)


@pytest.fixture(scope="module", params=["alex", "vgg"])
def lpips(request, random_tensors, shapes, store):
    """A network and the features of the file that it was loaded from."""
    with torch.device("meta"):
        features = {"alex": alexnet, "vgg": vgg16}[request.param]().features
    tensors = {f"features.{name}": t for name, t in random_tensors(shapes(features)).items()}
    name = f"lpips_{request.param}"
    path = store(tensors | {"classifier.1.weight": torch.zeros(2, 2)}, NETWORKS[name].file)
    return load_encoder(name, path.parent), tensors


def test_lpips_is_that_of_torchmetrics(lpips, images, others):
    ours, tensors = lpips
    theirs = _LPIPS(net=ours.name.removeprefix("lpips_"), pnet_rand=True)
    backbone = {name: tensors[f"features.{name.split('.', 1)[1]}"] for name in theirs.net.state_dict()}
    theirs.net.load_state_dict(backbone)
    distance = ours(images, others)
    assert distance.shape == (2,)
    torch.testing.assert_close(distance, theirs(images, others, normalize=True).flatten(), rtol=1e-4, atol=1e-6)


def st_tensors(backbone):
    """The tensors of a file of ST-LPIPS: (slice, number of the layer, shape) of convolutions, 64 wide and more."""
    if backbone == "alex":
        convolutions = [(1, 0, 64, 3, 11), (2, 5, 192, 64, 5), (3, 9, 384, 192, 3), (4, 11, 256, 384, 3)]
        convolutions += [(5, 13, 256, 256, 3)]
        blurs, widths = [(1, 1, 64), (2, 4, 64), (3, 8, 192)], (64, 192, 384, 256, 256)
    else:
        convolutions = [(1, 0, 64, 3, 3), (1, 2, 64, 64, 3), (2, 6, 128, 64, 3), (2, 8, 128, 128, 3)]
        for index, start, before, width in ((3, 12, 128, 256), (4, 20, 256, 512), (5, 28, 512, 512)):
            convolutions += [(index, start, width, before, 3)]
            convolutions += [(index, start + step, width, width, 3) for step in (2, 4)]
        blurs = [(2, 5, 64), (3, 11, 128), (4, 19, 256), (5, 27, 512)]
        widths = (64, 128, 256, 512, 512)
    shapes = {"scaling_layer.shift": (1, 3, 1, 1), "scaling_layer.scale": (1, 3, 1, 1)}
    for index, number, width, before, size in convolutions:
        shapes[f"net.slice{index}.{number}.weight"] = (width, before, size, size)
        shapes[f"net.slice{index}.{number}.bias"] = (width,)
    shapes |= {f"lin{index}.model.1.weight": (1, width, 1, 1) for index, width in enumerate(widths)}
    filters = {f"net.slice{i}.{n}.filt": FILTER.repeat(width, 1, 1, 1) for i, n, width in blurs}
    return shapes, filters


def st_features(tensors, backbone, x):
    """Features after each slice: layers in the order of their numbers."""
    names = sorted({name.rsplit(".", 1)[0] for name in tensors if "slice" in name}, key=lambda n: int(n.split(".")[2]))
    for index in range(1, 6):
        for name in (name for name in names if f"slice{index}." in name):
            if f"{name}.filt" in tensors:
                if index > 1:
                    x = F.max_pool2d(x, 3 if backbone == "alex" else 2, stride=1)
                x = F.pad(x, (2, 2, 2, 2), mode="reflect")
                x = F.conv2d(x, tensors[f"{name}.filt"], stride=2, groups=x.shape[1])
            else:
                weight = tensors[f"{name}.weight"].float()
                padding = {11: 2, 5: 2, 3: 1}[weight.shape[-1]]
                x = F.conv2d(x, weight, tensors[f"{name}.bias"].float(), padding=padding)
            if index == 1 and backbone == "alex" and f"{name}.weight" in tensors:
                continue  # blurred before it is rectified
            x = x.relu() if f"{name}.weight" in tensors or (index == 1 and backbone == "alex") else x
        yield x


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_stlpips_is_the_plain_computation(backbone, images, others, random_tensors, store):
    shapes, filters = st_tensors(backbone)
    tensors = random_tensors(shapes) | filters
    ours = load_encoder("stlpips", store(tensors, "weights.pth"))
    assert ours.name == f"stlpips_{backbone}"
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    pair = [(2 * x - 1 - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for x in (images, others)]
    expected = 0
    for index, (x, y) in enumerate(zip(*(st_features(tensors, backbone, x) for x in pair), strict=True)):
        difference = x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)
        expected += (difference**2 * tensors[f"lin{index}.model.1.weight"].float()).sum(1).mean((1, 2))
    torch.testing.assert_close(ours(images, others), expected, rtol=1e-4, atol=1e-6)


def test_distances_of_a_batch_are_those_of_its_images(lpips, images, others):
    distance, _ = lpips
    alone = [distance(images[k : k + 1], others[k : k + 1]) for k in range(2)]
    torch.testing.assert_close(distance(images, others), torch.cat(alone), rtol=1e-4, atol=1e-6)


def test_identical_images_have_no_distance(lpips, images):
    distance, _ = lpips
    assert torch.equal(distance(images, images.clone()), torch.zeros(2))
    black = torch.zeros(1, 3, 48, 48)
    assert torch.equal(distance(black, black), torch.zeros(1))


def test_the_distance_is_symmetric_frozen_and_needs_no_gradient(lpips, images, others):
    distance, _ = lpips
    assert torch.equal(distance(images, others), distance(others, images))
    assert not distance(images, others).requires_grad
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_batches_of_different_sizes_are_refused(lpips, images):
    with pytest.raises(ValueError, match=r"compares images one to one, got shapes \(2, 3, 48, 48\) and \(1, 3"):
        lpips[0](images, images[:1])


def test_the_weights_of_another_network_are_refused(random_tensors, shapes, store):
    tensors = random_tensors({f"features.{name}": shape for name, shape in shapes(alexnet().features).items()})
    path = store(tensors, "weights.pth")
    with pytest.raises(ValueError, match=r"not those of this network \(.*missing: features"):
        load_encoder("lpips_vgg", path)
    with pytest.raises(ValueError, match=r"not those of this network \(missing: .*; unknown: features"):
        load_encoder("stlpips", path)


def test_the_published_stlpips_hardly_sees_a_shift():
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(2, 3, 6, 6, generator=generator), size=(97, 97), mode="bicubic").clamp(0, 1)
    noisy = (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)
    distance = load_encoder("stlpips")
    assert (distance(smooth[..., :-1, :-1], smooth[..., 1:, 1:]) < 0.1 * distance(smooth, noisy)).all()
