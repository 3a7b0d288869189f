//! The runtime: hot core, wiring, configuration; the binary synod.
