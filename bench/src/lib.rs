//! Table 1 of Paxos Made Live, load, and the physical floor beside them.
