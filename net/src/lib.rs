//! Frames, connections and peer links as state machines: bytes in, messages out, and back.
