"""Canaries, private data, scores of secrets, exposure, and the statistics that judge them."""
