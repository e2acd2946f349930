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

fn main() -> ExitCode {
    let arguments = args::Uruk::parse();
    runtime::log_to_stderr(arguments.verbose);
    match command::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            // `{:#}` shows the chain of causes on one line.
            eprintln!("uruk: {error:#}");
            ExitCode::from(2)
        }
    }
}
