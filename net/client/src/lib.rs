//! The client library: finds the master, retries what is safe, says what is unknown.
