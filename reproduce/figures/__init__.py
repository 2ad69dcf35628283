"""Numbers in, drawings and captions out."""
