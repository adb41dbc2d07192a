"""The engines for CUDA devices. Only what is in here imports Triton, and only where `engines.py` chose it."""
