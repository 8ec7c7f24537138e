"""The loss in Triton: kernels, their launches, and what compilers make of them. Imported only where it is asked for."""
