"""Assembling and running a training run. `assemble` is the only place where build order is written."""
