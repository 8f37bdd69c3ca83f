"""Training on labelled scans and on synthetic ones: samples, networks, losses, cross-validation."""
