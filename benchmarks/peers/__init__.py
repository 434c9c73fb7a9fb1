"""Parts of `sft_vs_peers.py` and `dpo_vs_peers.py`: all but `setting.py`, `pairs.py`, `processes.py` and `rows.py` are
programs that run in a process of their own."""
