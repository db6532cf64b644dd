//! The `flexkv` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    flexkv::cli::run(std::env::args_os())
}
