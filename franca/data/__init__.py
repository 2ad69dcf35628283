"""What the trainer reads: datasets, multi-crop augmentation, and the stream of batches made of them."""
