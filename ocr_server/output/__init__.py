"""The model's answers → blocks, markdown, tables, figures, overlays."""
