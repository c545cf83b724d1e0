"""From spectral:: operators to code: which arithmetic carries the products, and faster kernels for each device."""
