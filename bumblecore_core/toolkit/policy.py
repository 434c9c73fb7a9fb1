"""The model as stages and losses see it: hidden states at kept positions, and the head as data."""
