//! The replicated state machine: keys, small files, sessions.
