"""``python -m sana_rt`` is the ``sana-rt`` command."""

from sana_rt.cli import main

if __name__ == "__main__":
    main()
