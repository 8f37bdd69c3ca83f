"""Segmentation models: arrays in, posteriors out. The only layer that imports torch."""
