"""Perplexity, arithmetic, texts to measure on, and other processes to compare with."""
