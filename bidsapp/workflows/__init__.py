"""Nipype workflows: which node feeds which."""
