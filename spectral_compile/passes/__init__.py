"""The passes that turn plan rows into spectral:: operators, one a file."""
