//! The `flexkv` command.

use std::process::ExitCode;

use flexkv::cli::Again;

fn main() -> ExitCode {
    flexkv::cli::run(std::env::args_os(), &Again::Itself)
}
