"""Checkpoints: committed whole or not there at all, and a resume that continues to the bit."""
