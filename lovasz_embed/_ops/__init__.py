"""The engine room: the readable reference and the compiled kernels. Nothing here is public."""
