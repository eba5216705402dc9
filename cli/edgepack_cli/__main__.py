"""``python -m edgepack_cli``: the same as ``edgepack``."""

from edgepack_cli.main import main

if __name__ == "__main__":
    main()
