"""Convert a guided-diffusion checkpoint into the diffusers folder that explain.py reads.

python -m ace.models.convert 256x256_diffusion_uncond.pt weights/imagenet/ddpm --preset imagenet256
python -m ace.models.convert model.pt weights/own/ddpm --image_size 128 --num_heads 4 --diffusion_steps 500

The flags are guided-diffusion's: its own line of them can be given as it is. Those left out are read off the
checkpoint, but for the size of the images, the number of heads, the order of attention and the length and kind of the
noise schedule, which no checkpoint tells.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from diffusers import DDPMPipeline

from ace.models.guided_diffusion import Flags, readable_flags
from ace.models.unet import load_guided_diffusion, read_checkpoint

# What the published scripts of ACE (scripts/*.sh) say of its four diffusion models, and the checkpoints do not.
PRESETS = {
    "celeba": {"image_size": 128, "num_heads": 4, "diffusion_steps": 500},
    "celeba_hq": {"image_size": 256, "num_head_channels": 64, "diffusion_steps": 500},
    "bdd": {"image_size": 256, "num_head_channels": 64, "diffusion_steps": 1000},
    "imagenet256": {"image_size": 256, "num_head_channels": 64, "diffusion_steps": 1000},
}


def convert_checkpoint(checkpoint: str | Path, folder: str | Path, **flags: Any) -> None:
    """Write the diffusers folder (safetensors) of a guided-diffusion checkpoint, in float32.

    Args:
        checkpoint: the ``.pt`` file, never unpickled beyond tensors.
        folder: to write.
        flags: see `ace.models.guided_diffusion.Flags`; of those left out, what can be is read off the checkpoint.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: see `ace.models.unet.load_guided_diffusion`; or the size of the images is not given.
    """
    state = read_checkpoint(Path(checkpoint))
    if "image_size" not in flags:
        raise ValueError("give --image_size, which a checkpoint does not tell, or a --preset")
    unet, scheduler = load_guided_diffusion(state, **readable_flags(state, flags["image_size"]) | flags)
    DDPMPipeline(unet, scheduler).save_pretrained(folder)


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ace.models.convert", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", help="the .pt file")
    parser.add_argument("folder", help="to write")
    parser.add_argument("--preset", choices=PRESETS, help="flags of a diffusion model that ACE published or used")
    for field in fields(Flags):
        parser.add_argument(f"--{field.name}", type=_reader(field.default), default=argparse.SUPPRESS)
    flags = vars(parser.parse_args(args))
    checkpoint, folder, preset = (flags.pop(name) for name in ("checkpoint", "folder", "preset"))
    try:
        convert_checkpoint(checkpoint, folder, **PRESETS.get(preset, {}) | flags)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"diffusion model  {folder}")


def _reader(default: Any) -> Callable[[str], Any]:
    return _truth if isinstance(default, bool) else type(default)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


if __name__ == "__main__":
    main()
