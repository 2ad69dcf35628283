"""Losses and teacher targets: functions of tensors, each defined by the naive loop in its docstring."""
