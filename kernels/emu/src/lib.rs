//! Runs the CUDA kernels on a CPU.
