//! CPU kernels of both decode paths and the references they are held to.
