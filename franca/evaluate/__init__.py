"""What a frozen model is worth: its features, and the k-nearest-neighbor accuracy of DINOv2's protocol."""
