"""The C++ kernels of the CPU: their sources, how they are built and loaded, and who calls them."""
