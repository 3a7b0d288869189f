//! Multi-Paxos as explicit state machines: no I/O, no clock, no thread.
