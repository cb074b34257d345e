"""Pixel-space diffusion models: diffusers folders, and checkpoints of OpenAI's guided-diffusion."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    ModelMixin,  # noqa: F401 - DDPMPipeline looks for it beside a class of ours
    UNet2DModel,
)
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from huggingface_hub import snapshot_download
from torch import Tensor

from ace.models.guided_diffusion import Flags, check_flags, convert

_REMEDY = (
    "train one with `python train.py fit --config configs/<domain>/ddpm.yaml`, or give a folder written by "
    "DDPMPipeline.save_pretrained or its name on the Hugging Face hub"
)


class GuidedUNet2DModel(UNet2DModel):
    """A `UNet2DModel` with what its configuration cannot say about a guided-diffusion network.

    Read its folder with `load_diffusion` or ``DDPMPipeline.from_pretrained``: ``UNet2DModel.from_pretrained`` makes
    another network of it, and only warns that it ignores the two arguments below.

    Args:
        num_attention_heads: heads of every attention layer, whatever its width; else ``attention_head_dim``.
        timestep_channels: size of the sinusoidal time embedding if it is not the width of the first level.
        config: arguments of `UNet2DModel`.
    """

    def __init__(
        self, *, num_attention_heads: int | None = None, timestep_channels: int | None = None, **config: Any
    ) -> None:
        super().__init__(**config)
        self.register_to_config(num_attention_heads=num_attention_heads, timestep_channels=timestep_channels)
        if num_attention_heads is not None:
            for layer in (module for module in self.modules() if isinstance(module, Attention)):
                layer.heads = num_attention_heads
                layer.scale = (layer.inner_dim // num_attention_heads) ** -0.5
        if timestep_channels is not None:
            width = self.time_embedding.linear_2.out_features
            self.time_proj = Timesteps(timestep_channels, self.config.flip_sin_to_cos, self.config.freq_shift)
            self.time_embedding = TimestepEmbedding(timestep_channels, width)

    # diffusers reads the keys of the saved configuration off this signature.
    __init__.__signature__ = inspect.Signature(
        [
            *inspect.signature(UNet2DModel.__init__).parameters.values(),
            *(p for p in inspect.signature(__init__).parameters.values() if p.kind is p.KEYWORD_ONLY),
        ]
    )


def load_guided_diffusion(path: str | Path | Mapping[str, Tensor], **flags: Any) -> tuple[UNet2DModel, DDPMScheduler]:
    """Load a guided-diffusion checkpoint: same outputs, in float32 and evaluation mode.

    Args:
        path: the ``.pt`` file (never unpickled beyond tensors), or its state dict.
        flags: as given to guided-diffusion, see `ace.models.guided_diffusion.Flags`. All that can be read off
            the tensors is checked; the number of heads and the order of attention cannot.

    Returns:
        The UNet, and the scheduler of the whole chain.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged file, class-conditional model, or flags that do not fit (says which and how).
    """
    settings = Flags(**flags)
    state = path if isinstance(path, Mapping) else read_checkpoint(Path(path))
    check_flags(settings, state)
    unet = build_unet(settings)
    try:
        unet.load_state_dict(convert(settings, state))
    except RuntimeError as error:
        raise ValueError(f"the checkpoint is damaged or not of guided-diffusion: {error}") from error
    return unet.eval(), build_scheduler(settings)


def read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a file of guided-diffusion.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}: give a .pt file of guided-diffusion")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch each raise their own kinds
        raise ValueError(f"cannot read {str(path)!r} ({error}): copy or download it again") from error
    if not (isinstance(state, Mapping) and all(isinstance(tensor, Tensor) for tensor in state.values())):
        raise ValueError(f"{str(path)!r} is no state dict of tensors: give a model file of guided-diffusion")
    return state


def build_unet(flags: Flags) -> UNet2DModel:
    """The untrained network that the flags of guided-diffusion describe."""
    resampling = "resnet" if flags.resblock_updown else "conv"
    levels = list(range(len(flags.widths)))
    config = {
        "sample_size": flags.image_size,
        "in_channels": flags.in_channels,
        "out_channels": flags.in_channels * (2 if flags.learn_sigma else 1),
        "down_block_types": tuple(_block("Down", level, flags) for level in levels),
        "up_block_types": tuple(_block("Up", level, flags) for level in reversed(levels)),
        "block_out_channels": flags.widths,
        "layers_per_block": flags.num_res_blocks,
        "downsample_type": resampling,
        "upsample_type": resampling,
        "dropout": flags.dropout,
        "attention_head_dim": None if flags.num_head_channels == -1 else flags.num_head_channels,
        "attn_norm_num_groups": 32,
        "time_embedding_dim": 4 * flags.num_channels,
        "resnet_time_scale_shift": "scale_shift" if flags.use_scale_shift_norm else "default",
    }
    heads = flags.num_heads if flags.num_head_channels == -1 else None
    timestep_channels = flags.num_channels if flags.widths[0] != flags.num_channels else None
    if heads is None and timestep_channels is None:
        return UNet2DModel(**config)
    return GuidedUNet2DModel(num_attention_heads=heads, timestep_channels=timestep_channels, **config)


def _block(direction: str, level: int, flags: Flags) -> str:
    if level in flags.attention_levels:
        return f"Attn{direction}Block2D"
    return f"Resnet{direction}sampleBlock2D" if flags.resblock_updown else f"{direction}Block2D"


def build_scheduler(flags: Flags) -> DDPMScheduler:
    """The diffusion process that the flags of guided-diffusion describe."""
    scale = 1000 / flags.diffusion_steps
    return DDPMScheduler(
        num_train_timesteps=flags.diffusion_steps,
        beta_start=scale * 1e-4,
        beta_end=scale * 0.02,
        beta_schedule="linear" if flags.noise_schedule == "linear" else "squaredcos_cap_v2",
        variance_type="learned_range" if flags.learn_sigma else "fixed_large",
        clip_sample=True,
        timestep_spacing="linspace",
    )


def load_diffusion(folder: str | Path) -> tuple[UNet2DModel, DDPMScheduler]:
    """Load a pixel-space DDPM in diffusers' layout, in float32 and evaluation mode; nothing is unpickled.

    Args:
        folder: local folder, or a name ``organisation/model`` on the Hugging Face hub.

    Raises:
        FileNotFoundError: no such folder or model, or one of its files is missing.
        ValueError: a file is damaged, or describes another kind of model.
    """
    root = local_folder(folder)
    unet_folder = root / "unet" if (root / "unet").is_dir() else root
    scheduler_folder = root / "scheduler" if (root / "scheduler").is_dir() else root
    unet_name = _class_name(unet_folder / "config.json", ("UNet2DModel", "GuidedUNet2DModel"))
    unet_class = UNet2DModel if unet_name == "UNet2DModel" else GuidedUNet2DModel
    _class_name(scheduler_folder / "scheduler_config.json", ("DDPMScheduler", "DDIMScheduler"))  # same schedule
    if not any(unet_folder.glob("diffusion_pytorch_model.safetensors*")):  # whole, or the index of its parts
        raise FileNotFoundError(
            f"no weights in {str(unet_folder)!r}: diffusion_pytorch_model.safetensors is missing; copy the "
            "folder again (pickled .bin weights are not read: save the pipeline with safe_serialization=True)"
        )
    try:
        unet, info = unet_class.from_pretrained(
            unet_folder,
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
        scheduler = DDPMScheduler.from_pretrained(scheduler_folder)
    except Exception as error:  # safetensors, json, torch and diffusers each raise their own kinds
        raise ValueError(
            f"cannot load the diffusion model in {str(root)!r} ({error}); a file is damaged or belongs to "
            "another model: export or copy the folder again"
        ) from error
    if misfits := [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]:
        raise ValueError(
            f"the weights in {str(unet_folder)!r} do not fit its config.json ({len(misfits)} tensors, "
            f"{misfits[0]} for one): export or copy the folder again"
        )
    return unet.eval(), scheduler


def local_folder(folder: str | Path) -> Path:
    """The folder itself, or the local copy of a model on the hub.

    Raises:
        FileNotFoundError: no such folder or model.
    """
    if Path(folder).is_dir():
        return Path(folder)
    if isinstance(folder, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", folder):
        raise FileNotFoundError(f"no diffusion model at {str(folder)!r}, there is no such folder: {_REMEDY}")
    try:
        return Path(snapshot_download(folder, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # no network, no such model, no access: all mean that it cannot be had
        raise FileNotFoundError(
            f"no diffusion model at {folder!r}, neither a folder nor available from the hub ({error}): {_REMEDY}"
        ) from error


def _class_name(path: Path, known: tuple[str, ...]) -> str:
    """The class that a configuration file of diffusers names, one of ``known``."""
    if not path.is_file():
        raise FileNotFoundError(f"no diffusion model here, {str(path)!r} is missing: {_REMEDY}")
    try:
        name = json.loads(path.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is no configuration of diffusers ({error!r}): copy it again") from error
    if name not in known:
        raise ValueError(f"{str(path)!r} describes a {name}, ACE needs one of {', '.join(known)}: {_REMEDY}")
    return name
