"""The encoder's sizes, read from a checkpoint's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PATCH_SIZE = 16


@dataclass(frozen=True)
class SamConfig:
    """SAM ViT-B in the published model; every size can be smaller."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    global_layers: tuple[int, ...] = (2, 5, 8, 11)
    """Layers that attend over the whole picture; the others attend within windows."""
    window_size: int = 14
    """Patches along one side of a window."""
    neck: int = 256
    """Channels after the neck."""
    downsample: tuple[int, int] = (512, 1024)
    """Channels after each of the two stride-2 convolutions."""
    table_side: int = 64
    """Patches along one side of the learned position table (1024 pixels)."""


@dataclass(frozen=True)
class ClipConfig:
    """CLIP ViT-L in the published model."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    table_side: int = 16
    """Tokens along one side of the learned position table."""
    patch_size: int = 14
    """Side of the published patch embedding, which SAM's output replaces."""


@dataclass(frozen=True)
class EncoderConfig:
    sam: SamConfig
    clip: ClipConfig
    hidden_size: int = 1280
    """Width of the decoder, which the projector maps to."""

    def __post_init__(self) -> None:
        if self.sam.downsample[1] != self.clip.width:
            raise ValueError(
                f"SAM's last downsample channels ({self.sam.downsample[1]}) must equal CLIP's width "
                f"({self.clip.width}): its output is CLIP's input"
            )

    @property
    def projector_input(self) -> int:
        return self.clip.width + self.sam.downsample[1]

    @classmethod
    def from_checkpoint(cls, vision: Mapping[str, Any], projector: Mapping[str, Any]) -> EncoderConfig:
        """From `vision_config` and `projector_config` of a checkpoint.

        `neck` and `window_size` of `sam_vit_b` are not in the published config; absent, they are
        those of the published weights.

        Raises:
            ValueError: a size is missing or the sizes contradict each other.
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
