"""The encoder's sizes, read from a checkpoint's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PATCH_SIZE = 16


@dataclass(frozen=True)
class SamConfig:
    """Sizes of SAM. The defaults are those of the published model (ViT-B)."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    global_layers: tuple[int, ...] = (2, 5, 8, 11)
    """Layers with attention over the whole picture. The others have attention within windows."""
    window_size: int = 14
    """Side of a window, in patches."""
    neck: int = 256
    """Number of channels after the neck."""
    downsample: tuple[int, int] = (512, 1024)
    """Number of channels after each of the two convolutions with stride 2."""
    table_side: int = 64
    """Side of the learned position table, in patches (64 for 1024 pixels)."""


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of CLIP. The defaults are those of the published model (ViT-L)."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    table_side: int = 16
    """Side of the learned position table, in tokens."""
    patch_size: int = 14
    """Side of the published patch embedding, in pixels. SAM's output replaces it."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the whole encoder.

    Raises:
        ValueError: The sizes of SAM and CLIP do not fit together.
    """

    sam: SamConfig
    clip: ClipConfig
    hidden_size: int = 1280
    """Width of the decoder and of the projector's output."""

    def __post_init__(self) -> None:
        if self.sam.downsample[1] != self.clip.width:
            raise ValueError(
                f"SAM's last downsample channels ({self.sam.downsample[1]}) must equal CLIP's width "
                f"({self.clip.width}), because its output is CLIP's input"
            )

    @property
    def projector_input(self) -> int:
        """Width of the projector's input: CLIP's and SAM's outputs together."""
        return self.clip.width + self.sam.downsample[1]

    @classmethod
    def from_checkpoint(cls, vision: Mapping[str, Any], projector: Mapping[str, Any]) -> EncoderConfig:
        """Read the sizes from `vision_config` and `projector_config` of a checkpoint.

        `neck` and `window_size` of `sam_vit_b` are not in the published config. If they are absent, they are those of
        the published weights.

        Raises:
            ValueError: A size is missing, or the sizes contradict each other.
        """
        try:
            width = vision["width"]
            sam, clip = width["sam_vit_b"], width["clip-l-14-224"]
            config = cls(
                sam=SamConfig(
                    width=sam["width"],
                    layers=sam["layers"],
                    heads=sam["heads"],
                    global_layers=tuple(sam["global_attn_indexes"]),
                    window_size=sam.get("window_size", SamConfig.window_size),
                    neck=sam.get("neck", SamConfig.neck),
                    downsample=(sam["downsample_channels"][0], sam["downsample_channels"][1]),
                    table_side=vision["image_size"] // PATCH_SIZE,
                ),
                clip=ClipConfig(
                    width=clip["width"],
                    layers=clip["layers"],
                    heads=clip["heads"],
                    table_side=clip["image_size"] // clip["patch_size"],
                    patch_size=clip["patch_size"],
                ),
                hidden_size=projector["n_embed"],
            )
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"the checkpoint's vision_config does not describe a DeepEncoder: {error!r}") from error
        if projector["input_dim"] != config.projector_input:
            raise ValueError(
                f"projector_config.input_dim is {projector['input_dim']}, "
                f"but CLIP and SAM together give {config.projector_input}"
            )
        return config
