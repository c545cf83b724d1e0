"""python -m spectral_compile: questions from a terminal. See `--help`."""

from spectral_compile.report.commands import main

if __name__ == "__main__":
    main()
