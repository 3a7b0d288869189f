//! The example runs, and its own check passes. It is a test without a harness, because it starts itself again: its main
//! is the example's, so that the replicas are processes of what was built just now.

#[path = "../examples/sequencer/main.rs"]
mod example;

fn main() -> std::process::ExitCode {
    example::main()
}
