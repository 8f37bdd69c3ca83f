"""Figures, and the HTML pages assembled from them and the tables on disk."""
