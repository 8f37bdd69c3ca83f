"""Thin nipype interfaces: load, one pure call, save."""
