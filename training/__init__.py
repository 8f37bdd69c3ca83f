"""Train the networks of bidsapp on synthetic scans; imports bidsapp, never the reverse."""
