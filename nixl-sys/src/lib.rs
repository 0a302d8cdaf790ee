//! NIXL's C ABI, loaded at run time (independent of NVIDIA's crate of the same name)
