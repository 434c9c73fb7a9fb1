"""Parts of `sft_vs_peers.py`: each file but `setting.py` is a program that runs in a process of its own."""
