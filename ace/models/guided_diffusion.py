"""UNet checkpoints of OpenAI's guided-diffusion: flags, shapes, and tensors under diffusers' names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

State = Mapping[str, Tensor]

DEFAULT_CHANNEL_MULT = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}


def _numbers(value: str | tuple | list | int | float) -> tuple[int | float, ...]:
    """The numbers in ``"1,2"``, ``(1, 2)`` or ``1``; whole ones as int."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    parts = value if isinstance(value, (tuple, list)) else [value]
    return tuple(int(number) if number.is_integer() else number for number in map(float, parts))


@dataclass(frozen=True)
class Flags:
    """The model and diffusion flags of guided-diffusion, with its names and its defaults.

    Args:
        image_size: side of the training images (the shorter one if they are not square).
        num_channels: base width.
        num_res_blocks: residual blocks a level.
        channel_mult: width of each level, in units of ``num_channels``; by default that of ``image_size``.
        attention_resolutions: sides of the feature maps with attention.
        num_heads: attention heads of every level, unless ``num_head_channels`` is given.
        num_head_channels: channels of one attention head; -1 for none given.
        use_new_attention_order: layout of the queries, keys and values in the checkpoint.
        use_scale_shift_norm: the time embedding scales and shifts, instead of being added.
        resblock_updown: residual blocks change the resolution, instead of convolutions.
        learn_sigma: the network also predicts the variance.
        class_cond: refused if true.
        dropout: during training.
        use_fp16: ignored, as the weights are always cast to float32.
        diffusion_steps: length of the chain.
        noise_schedule: ``linear`` or ``cosine``.
        in_channels: image channels.

    Raises:
        ValueError: a value that no checkpoint can have, or class conditioning.
    """

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    channel_mult: str | tuple[float, ...] = ""
    attention_resolutions: str | tuple[int, ...] = "16,8"
    num_heads: int = 4
    num_head_channels: int = -1
    use_new_attention_order: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    learn_sigma: bool = False
    class_cond: bool = False
    dropout: float = 0.0
    use_fp16: bool = False
    diffusion_steps: int = 1000
    noise_schedule: Literal["linear", "cosine"] = "linear"
    in_channels: int = 3

    def __post_init__(self) -> None:
        if self.class_cond:
            raise ValueError("class_cond=True: " + CLASS_CONDITIONAL)
        if self.noise_schedule not in ("linear", "cosine"):
            raise ValueError(f"unknown noise_schedule {self.noise_schedule!r}: use linear or cosine")
        if not self.channel_mult and self.image_size not in DEFAULT_CHANNEL_MULT:
            raise ValueError(f"image_size {self.image_size} has no default channel_mult: give one, '1,2,3,4' say")
        if min(_numbers(self.attention_resolutions), default=1) < 1:
            raise ValueError(f"attention_resolutions must be positive, got {self.attention_resolutions!r}")
        name = "num_heads" if self.num_head_channels == -1 else "num_head_channels"
        for level in {*self.attention_levels, len(self.widths) - 1}:
            divisor, width = getattr(self, name), self.widths[level]
            if divisor < 1 or width % divisor:
                raise ValueError(f"{name}={divisor} does not divide the {width} channels of level {level}")

    @property
    def multipliers(self) -> tuple[int | float, ...]:
        """Width of each level, in units of ``num_channels``."""
        return _numbers(self.channel_mult) if self.channel_mult else DEFAULT_CHANNEL_MULT[self.image_size]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(factor * self.num_channels) for factor in self.multipliers)

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """Levels with attention; level l has the image's side over 2**l. The middle block always has it."""
        strides = {self.image_size // int(side) for side in _numbers(self.attention_resolutions)}
        return tuple(level for level in range(len(self.multipliers)) if 2**level in strides)


CLASS_CONDITIONAL = (
    "the checkpoint is class-conditional, but ACE needs an unconditional diffusion model: "
    "a label would steer the image while the classifier is being explained"
)


def check_flags(flags: Flags, state: State) -> None:
    """Compare the flags with the names and shapes of the checkpoint's tensors.

    Raises:
        ValueError: another kind of file, a class-conditional model, flags that do not fit (says which do).
    """
    given = {name: getattr(flags, name) for name in Flags.__dataclass_fields__} | {"channel_mult": flags.multipliers}
    fitting = readable_flags(state, flags.image_size)
    comparable = given | {"attention_resolutions": _resolutions(flags.image_size, flags.attention_levels)}
    wrong = [name for name, value in fitting.items() if comparable[name] != value]
    if wrong:
        found = "; ".join(f"{name}={given[name]!r} (the checkpoint has {fitting[name]!r})" for name in wrong)
        remedy = " ".join(f"--{name} {_written(fitting[name])}" for name in wrong)
        raise ValueError(f"flags that do not fit the checkpoint: {found}; give {remedy}")


def readable_flags(state: State, image_size: int) -> dict[str, Any]:
    """The flags that a checkpoint tells: all but heads, order of attention and diffusion.

    Args:
        state: its tensors.
        image_size: side of the training images, which it does not tell.

    Raises:
        ValueError: another kind of file, or a class-conditional model.
    """
    if "label_emb.weight" in state:
        raise ValueError(CLASS_CONDITIONAL)
    for name in ("time_embed.0.weight", "input_blocks.0.0.weight", "output_blocks.0.0.in_layers.0.weight"):
        if name not in state:
            raise ValueError(f"this is not a UNet checkpoint of guided-diffusion: it has no tensor {name}")
    try:
        found = _structure(state)
    except KeyError as error:
        raise ValueError(f"the checkpoint is incomplete: it has no tensor {error}") from error
    found["attention_resolutions"] = _resolutions(image_size, found.pop("attention_levels"))
    return found


def _resolutions(image_size: int, levels: tuple[int, ...]) -> str:
    """Sides of the feature maps of some levels, as the flag lists them."""
    return ",".join(str(image_size // 2**level) for level in reversed(levels))


def _written(value: Any) -> str:
    """A flag's value as on a command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value) or "''"


def _structure(state: State) -> dict[str, Any]:
    """The flags that can be read off the tensors (numbers of heads and attention order cannot)."""
    outputs = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("output_blocks."))
    # The last block of each level of the upward path ends with a module that doubles the resolution.
    doubling = re.compile(r"output_blocks\.\d+\.[12]\.(conv|in_layers)\.")
    levels = 1 + len({name.split(".")[1] for name in state if doubling.match(name)})
    res_blocks = outputs // levels - 1
    first_blocks = [1 + level * (res_blocks + 1) for level in range(levels)]
    channels = state["time_embed.0.weight"].shape[1]
    widths = [state[f"input_blocks.{block}.0.out_layers.3.weight"].shape[0] for block in first_blocks]
    image_channels = state["input_blocks.0.0.weight"].shape[1]
    shift = state["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    found = {
        "num_channels": channels,
        "num_res_blocks": res_blocks,
        "channel_mult": _numbers([width / channels for width in widths]),
        "use_scale_shift_norm": shift == 2 * widths[0],
        "learn_sigma": state["out.2.weight"].shape[0] == 2 * image_channels,
        "in_channels": image_channels,
        "attention_levels": tuple(
            level for level, block in enumerate(first_blocks) if f"input_blocks.{block}.1.qkv.weight" in state
        ),
    }
    if levels > 1:
        found["resblock_updown"] = not any(".op." in name for name in state)
    return found


def convert(flags: Flags, state: State) -> dict[str, Tensor]:
    """The checkpoint's tensors under the names of diffusers' ``UNet2DModel``.

    Raises:
        ValueError: tensors are missing or left over.
    """
    converted, used = {}, set()
    for kind, source, target in _modules(flags):
        for source_part, target_part in _PARTS[kind].items():
            for leaf in ("weight", "bias"):
                name = _join(source, source_part, leaf)
                if name in state:
                    used.add(name)
                    converted |= _place(state[name], _join(target, target_part, leaf), flags)
                elif source_part != "skip_connection":  # which is only where the width changes
                    raise ValueError(f"the checkpoint is incomplete: it has no tensor {name}")
    if left := sorted(set(state) - used):
        raise ValueError(f"{len(left)} tensors of the checkpoint have no place in this UNet: {left[0]}, ...")
    return converted


_PARTS = {
    "plain": {"": ""},
    "resnet": {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    },
    "attention": {"norm": "group_norm", "qkv": "to_qkv", "proj_out": "to_out.0"},
}


def _place(tensor: Tensor, target: str, flags: Flags) -> dict[str, Tensor]:
    """A tensor under its new name, or under three where queries, keys and values are stacked."""
    if tensor.ndim == 3:  # a pointwise convolution over positions: a linear layer in diffusers
        tensor = tensor.squeeze(-1)
    if ".to_qkv." not in target:
        return {target: tensor}
    pieces = _split_qkv(tensor, flags)
    return {target.replace("to_qkv", f"to_{letter}"): piece for letter, piece in zip("qkv", pieces, strict=True)}


def _join(*parts: str) -> str:
    return ".".join(filter(None, parts))


def _split_qkv(tensor: Tensor, flags: Flags) -> tuple[Tensor, ...]:
    """Queries, keys and values, each with its rows ordered by head, from rows of shape (3 * width, ...)."""
    width = tensor.shape[0] // 3
    if flags.use_new_attention_order:
        return tensor.chunk(3)
    heads = flags.num_heads if flags.num_head_channels == -1 else width // flags.num_head_channels
    by_head = tensor.view(heads, 3, width // heads, *tensor.shape[1:])
    return tuple(piece.flatten(0, 1) for piece in torch.unbind(by_head, 1))


def _modules(flags: Flags) -> Iterator[tuple[str, str, str]]:
    """(kind, name in guided-diffusion, name in diffusers) of every module with weights."""
    yield "plain", "time_embed.0", "time_embedding.linear_1"
    yield "plain", "time_embed.2", "time_embedding.linear_2"
    yield "plain", "input_blocks.0.0", "conv_in"
    yield from _down_modules(flags)
    yield "resnet", "middle_block.0", "mid_block.resnets.0"
    yield "attention", "middle_block.1", "mid_block.attentions.0"
    yield "resnet", "middle_block.2", "mid_block.resnets.1"
    yield from _up_modules(flags)
    yield "plain", "out.0", "conv_norm_out"
    yield "plain", "out.2", "conv_out"


def _down_modules(flags: Flags) -> Iterator[tuple[str, str, str]]:
    block = 1
    for level in range(len(flags.widths)):
        for layer in range(flags.num_res_blocks):
            yield "resnet", f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{layer}"
            if level in flags.attention_levels:
                yield "attention", f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{layer}"
            block += 1
        if level < len(flags.widths) - 1:
            target = f"down_blocks.{level}.downsamplers.0"
            if flags.resblock_updown:
                yield "resnet", f"input_blocks.{block}.0", target
            else:
                yield "plain", f"input_blocks.{block}.0.op", f"{target}.conv"
            block += 1


def _up_modules(flags: Flags) -> Iterator[tuple[str, str, str]]:
    block = 0
    for position, level in enumerate(reversed(range(len(flags.widths)))):
        attends = level in flags.attention_levels
        for layer in range(flags.num_res_blocks + 1):
            yield "resnet", f"output_blocks.{block}.0", f"up_blocks.{position}.resnets.{layer}"
            if attends:
                yield "attention", f"output_blocks.{block}.1", f"up_blocks.{position}.attentions.{layer}"
            block += 1
        if level:
            source = f"output_blocks.{block - 1}.{2 if attends else 1}"
            target = f"up_blocks.{position}.upsamplers.0"
            if flags.resblock_updown:
                yield "resnet", source, target
            else:
                yield "plain", f"{source}.conv", f"{target}.conv"
