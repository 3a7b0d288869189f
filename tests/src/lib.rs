//! The simulator, the torture commands, and the tests of whole cells.

pub mod fuzz;
pub mod model;
pub mod sim;
pub mod torture;
