"""The trainer: self-supervised pretraining of vision transformers, launched from a run folder's `config.yaml`."""
