"""``python -m libortho``."""

from libortho.cli import main

if __name__ == "__main__":
    main()
