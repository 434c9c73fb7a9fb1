"""`python -m bumblecore_core …` is `bumble …` (for launchers that start modules, such as torchrun -m)."""

from bumblecore_core.cli import main

if __name__ == "__main__":
    main()
