"""DeepEncoder in plain torch: SAM → CLIP → projector, as DeepSeek-OCR publishes it."""

from deepseek_ocr.encoder.config import ClipConfig, EncoderConfig, SamConfig
from deepseek_ocr.encoder.deep_encoder import DeepEncoder

__all__ = ["ClipConfig", "DeepEncoder", "EncoderConfig", "SamConfig"]
