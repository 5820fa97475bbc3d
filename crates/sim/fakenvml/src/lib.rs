//! A libnvidia-ml stand-in.
