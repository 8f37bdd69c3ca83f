"""Pure functions on images: NIfTI (nibabel) in, NIfTI out. The only layer that imports ants."""
