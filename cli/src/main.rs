//! `uruk`: every process and every tool of Uruk in one binary.

use std::process::ExitCode;

use clap::Parser;

mod args;
mod cluster;
mod command;
mod load;
mod output;
mod process;
mod runtime;

/// The engine frees on one thread what another allocated, which the system's allocator does under a lock.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = args::Uruk::parse();
    runtime::log_to_stderr(arguments.verbose);
    match command::run(arguments) {
        Ok(code) => code,
        // Whoever read our output has seen enough, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // `{:#}` shows the chain of causes on one line.
            eprintln!("uruk: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    // The outermost alone: deeper ones are of connections.
    error.downcast_ref().is_some_and(is)
}
