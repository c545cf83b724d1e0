"""What runs on the GPU: kernels, and the functions of Triton's language that they are made of."""
