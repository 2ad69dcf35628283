"""Vision transformers and projection heads, named as upstream names them."""
