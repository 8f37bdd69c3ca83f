"""Brain-MRI segmentation as a BIDS app: tissues, lesions, volumes and their report."""
