"""``python -m memweir``."""

from memweir.cli import main

if __name__ == "__main__":
    main()
