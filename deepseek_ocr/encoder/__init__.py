"""DeepEncoder in plain torch: SAM, CLIP and projector, as published with DeepSeek-OCR."""

from deepseek_ocr.encoder.config import ClipConfig, EncoderConfig, SamConfig
from deepseek_ocr.encoder.deep_encoder import DeepEncoder

__all__ = ["ClipConfig", "DeepEncoder", "EncoderConfig", "SamConfig"]
