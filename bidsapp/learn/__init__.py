"""Training on labelled scans and on synthetic ones: samples, networks, losses, cross-validation."""

#: Losses that can be asked for; here, not in `losses`, because ``--help`` names them and must not import torch.
LOSSES = ("dice-ce", "tversky", "focal")
