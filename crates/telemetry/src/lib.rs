//! Logging, the Prometheus registry, the admin server and graceful shutdown.
