"""Self-supervised pretraining: a run folder's `config.yaml` in; its log, checkpoints and evaluations out."""
