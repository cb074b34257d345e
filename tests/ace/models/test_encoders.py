"""Feature networks by name: each from a file in its published format, against a plain computation."""

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models import inception_v3, resnet50

from ace.images import from_uint8, to_uint8
from ace.models.backbones import efficientnet_lite0
from ace.models.classifiers import ImageClassifier
from ace.models.encoders import NETWORKS, load_encoder

close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def files(random_tensors, shapes, store):
    """The path of a file in the published format, and the tensors in it; made when asked for."""
    made = {}

    def published(name):
        if name not in made:
            tensors = random_tensors(FORMATS[name](shapes))
            made[name] = store(CHECKPOINTS.get(name, dict)(tensors), NETWORKS[name].file), tensors
        return made[name]

    return published


def simsiam_shapes(shapes):
    with torch.device("meta"):
        backbone = {name: shape for name, shape in shapes(resnet50()).items() if not name.startswith("fc.")}
    projector = {f"fc.{index}.weight": (2048, 2048) for index in (0, 3, 6)} | {"fc.6.bias": (2048,)}
    for index, kinds in ((1, ("weight", "bias")), (4, ("weight", "bias")), (7, ())):
        projector |= {f"fc.{index}.{kind}": (2048,) for kind in (*kinds, "running_mean", "running_var")}
        projector[f"fc.{index}.num_batches_tracked"] = ()
    return {f"encoder.{name}": shape for name, shape in (backbone | projector).items()}


def simsiam_checkpoint(tensors):
    state = {f"module.{name}": tensor for name, tensor in tensors.items()}
    predictor = {"module.predictor.0.weight": torch.zeros(512, 2048)}
    return {"epoch": 100, "arch": "resnet50", "state_dict": state | predictor, "optimizer": {}}


FORMATS = {
    "inception": lambda shapes: shapes(inception_v3(num_classes=1008, aux_logits=False, init_weights=False)),
    "vggface2": lambda shapes: shapes(resnet50(num_classes=8631)),
    "simsiam": simsiam_shapes,
    "efficientnet_lite0": lambda shapes: (
        shapes(efficientnet_lite0()) | {"_fc.weight": (1000, 1280), "_fc.bias": (1000,)}
    ),
}
CHECKPOINTS = {"simsiam": simsiam_checkpoint}


@pytest.fixture(scope="module")
def loaded(files):
    """Loads each network once."""
    networks = {}

    def load(name):
        if name not in networks:
            networks[name] = load_encoder(name, files(name)[0])
        return networks[name]

    return load


@pytest.mark.parametrize(
    ("name", "dimension"), [("inception", 2048), ("vggface2", 2048), ("simsiam", 2048), ("efficientnet_lite0", 1280)]
)
def test_features_of_a_published_network(name, dimension, loaded, images):
    encoder = loaded(name)
    features = encoder(images)
    assert (encoder.name, encoder.dimension) == (name, dimension)
    assert features.shape == (2, dimension)
    assert features.isfinite().all()
    assert not encoder.training
    assert not features.requires_grad
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    close(features[1:], encoder(images[1:]))  # whatever else is in the batch


def test_inception_resizes_as_pytorch_fid_does(loaded, images):
    encoder = loaded("inception")
    resized = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
    close(encoder(images), encoder.network(2 * resized - 1))


def test_inception_is_torchvisions_with_other_pooling(loaded, files, images, monkeypatch):
    """Torchvision's network with its averages not counting the padding, and a maximum in the last block."""
    theirs = inception_v3(num_classes=1008, aux_logits=False, init_weights=False).eval()
    theirs.load_state_dict(files("inception")[1])
    theirs.fc = nn.Identity()
    average, maximum, last = F.avg_pool2d, F.max_pool2d, []

    def pool(x, kernel_size, stride, padding):
        if last:
            return maximum(x, kernel_size, stride, padding)
        return average(x, kernel_size, stride, padding, count_include_pad=False)

    monkeypatch.setattr(F, "avg_pool2d", pool)
    theirs.Mixed_7c.register_forward_pre_hook(lambda *_: last.append(True))
    resized = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        close(loaded("inception")(images), theirs(2 * resized - 1))


def torchvision_names(stage, block, layer):
    if layer == "stem":
        return "conv1", "bn1"
    module = f"layer{stage - 1}.{block - 1}"
    if layer == "1x1_proj":
        return f"{module}.downsample.0", f"{module}.downsample.1"
    number = ("1x1_reduce", "3x3", "1x1_increase").index(layer) + 1
    return f"{module}.conv{number}", f"{module}.bn{number}"


def test_vggface2_is_the_network_of_caffe_on_images_resized_by_pil(loaded, files, images, caffe_features):
    means = np.array([91.4953, 103.8827, 131.0912], dtype=np.float32)
    resized = [np.asarray(Image.fromarray(image).resize((224, 224), Image.BILINEAR)) for image in to_uint8(images)]
    prepared = torch.from_numpy(np.stack([image[..., ::-1] - means for image in resized])).movedim(-1, 1)
    encoder = loaded("vggface2")
    saved = from_uint8(to_uint8(images))
    torch.testing.assert_close(encoder.prepare(saved), prepared, rtol=0, atol=1.01)  # PIL rounds to 8 bits
    expected = caffe_features(files("vggface2")[1], torchvision_names, prepared)
    assert (F.cosine_similarity(encoder(saved), expected) > 0.9999).all()
    close(encoder.network(prepared), expected)


def test_vggface2_resizes_the_shorter_side(loaded):
    assert loaded("vggface2").prepare(torch.rand(1, 3, 50, 100)).shape == (1, 3, 224, 448)


def test_simsiam_gives_the_projectors_outputs_at_the_images_size(loaded, files, images):
    tensors = {name.removeprefix("encoder."): tensor.float() for name, tensor in files("simsiam")[1].items()}
    backbone = resnet50().eval()
    backbone.fc = nn.Identity()
    backbone.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")})

    def normalised(x, index):
        kinds = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(tensors.get(f"fc.{index}.{kind}") for kind in kinds))

    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        x = backbone((images - mean) / std)
    x = normalised(x @ tensors["fc.0.weight"].T, 1).relu()
    x = normalised(x @ tensors["fc.3.weight"].T, 4).relu()
    x = normalised(F.linear(x, tensors["fc.6.weight"], tensors["fc.6.bias"]), 7)
    close(loaded("simsiam")(images), x)


def test_efficientnet_lite0_takes_whole_images_of_224_pixels(loaded, images):
    encoder = loaded("efficientnet_lite0")
    resized = F.interpolate(images, size=(224, 224), mode="bilinear", align_corners=False)
    close(encoder(images), encoder.network((255 * resized - 127) / 128).flatten(1))


def test_the_published_efficientnet_lite0_is_found_in_its_package(images):
    assert load_encoder("efficientnet_lite0")(images).isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_missing_file_says_how_to_get_it_and_where_to_put_it(name, tmp_path):
    published = NETWORKS[name]
    with pytest.raises(FileNotFoundError) as missing:
        load_encoder(name, tmp_path / "weights.pth")
    assert name in str(missing.value)
    assert published.source in str(missing.value)
    assert str(tmp_path / "weights.pth") in str(missing.value)


@pytest.mark.parametrize("name", [name for name, published in NETWORKS.items() if published.file])
def test_in_a_folder_the_published_file_is_looked_for(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="are missing") as missing:
        load_encoder(name, tmp_path)
    assert f"put it at {str(tmp_path / NETWORKS[name].file)!r}" in str(missing.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_path_only_installed_packages_are_looked_into(name, monkeypatch):
    monkeypatch.setattr("ace.models.encoders.find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="give its path or its folder"):
        load_encoder(name)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "stlpips"])
def test_the_weights_in_a_package_are_found_without_importing_it(name, tmp_path, monkeypatch):
    package, folder = NETWORKS[name].package
    file = tmp_path / package / folder / NETWORKS[name].file
    file.parent.mkdir(parents=True)
    (tmp_path / package / "__init__.py").write_text("raise ImportError('imported')\n")
    torch.save({"wrong": torch.zeros(1)}, file)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"{file.name}' are not those of this network"):
        load_encoder(name)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="unknown network 'vgg': use one of inception, vggface2, "):
        load_encoder("vgg", "weights.pth")


def test_torchvisions_own_inception_is_not_that_of_fid(random_tensors, shapes, store):
    tensors = random_tensors(shapes(inception_v3(init_weights=False)))
    with pytest.raises(ValueError, match=r"unknown: AuxLogits.* of another shape: fc.bias, fc.weight\)"):
        load_encoder("inception", store(tensors, "inception_v3_google-0cc3c7bd.pth"))


@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_another_network_are_refused(name, tmp_path):
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth' are not those of this network \(missing: "):
        load_encoder(name, tmp_path / "weights.pth")


def test_simsiam_needs_its_projector(files, store):
    state = {name: tensor for name, tensor in files("simsiam")[1].items() if ".fc." not in name}
    with pytest.raises(ValueError, match=r"\(missing: fc.0.weight, fc.1.bias, fc.1.running_mean and 11 more\)"):
        load_encoder("simsiam", store({"state_dict": state}, "backbone.pth"))


def test_the_published_pickle_of_vggface2_is_refused_with_a_way_to_convert_it(tmp_path, random_tensors, monkeypatch):
    shapes = {"conv1.weight": (64, 3, 7, 7), "fc.bias": (8631,)}
    arrays = {name: tensor.float().numpy() for name, tensor in random_tensors(shapes).items()}
    path = tmp_path / "resnet50_ft_weight.pkl"
    path.write_bytes(pickle.dumps(arrays, protocol=2))
    with pytest.raises(ValueError, match="is a pickle, which could run any code when read") as refused:
        load_encoder("vggface2", path)
    program = str(refused.value).split('python -c "')[1].split('"`')[0]
    monkeypatch.chdir(tmp_path)
    exec(program)
    assert NETWORKS["vggface2"].file in program
    with pytest.raises(ValueError, match=r"\(missing: bn1"):  # read, but only two of its tensors are there
        load_encoder("vggface2", tmp_path)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", [name for name, published in NETWORKS.items() if published.file])
def test_no_network_unpickles_its_file(name, tmp_path):
    mark = tmp_path / "mark"
    torch.save({"state_dict": {"conv1.weight": Evil(mark)}}, tmp_path / "weights.pth")
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"conv1.weight": Evil(mark)}, protocol=2))
    for file in ("weights.pth", "weights.pkl"):
        with pytest.raises(ValueError, match=rf"{file}'.*(never unpickled|is a pickle)"):
            load_encoder(name, tmp_path / file)
    assert not mark.exists()


ARCHITECTURES = {
    "torchvision.models.ShuffleNetV2": {"stages_repeats": [1, 1, 1], "stages_out_channels": [4, 8, 8, 8, 16]},
    "torchvision.models.MobileNetV2": {"width_mult": 0.1, "inverted_residual_setting": [[1, 8, 1, 2]]},
    "torchvision.models.DenseNet": {"growth_rate": 4, "block_config": [1], "num_init_features": 4},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_features_of_an_own_classifier_are_what_its_last_layer_takes(architecture, task, tmp_path, images):
    torch.manual_seed(0)
    classifier = ImageClassifier(architecture, ["a", "b"], task, ARCHITECTURES[architecture]).eval()
    classifier.save_pretrained(tmp_path)
    encoder = load_encoder("classifier", tmp_path)
    features = encoder(images)
    (last,) = (module for module in classifier.modules() if isinstance(module, nn.Linear))
    assert features.shape == (2, encoder.dimension) == (2, last.in_features)
    assert encoder.name == "classifier"
    assert not features.requires_grad
    torch.testing.assert_close(last(features), classifier(images))


def test_a_classifier_that_ends_otherwise_is_refused(tmp_path):
    ImageClassifier("squeezenet1_1", ["a", "b"], "multiclass").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'squeezenet1_1' does not end with a linear layer that gives its logits"):
        load_encoder("classifier", tmp_path)
