"""An OCR API in the shape of Mistral's."""
