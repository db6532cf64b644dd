//! The `flexkv` command, run by an interpreter.
//!
//! Knows nothing of what the command does.

use std::ffi::OsString;
use std::process::ExitCode;

use flexkv::cli::Again;
use pyo3::prelude::*;

/// Runs the command with the arguments after its name; its exit code.
#[pyfunction]
pub(crate) fn run_command(py: Python<'_>, argv: Vec<OsString>) -> PyResult<u8> {
    let interpreter: OsString = py.import("sys")?.getattr("executable")?.extract()?;
    let again = Again::Command(vec![interpreter, "-m".into(), "flexkv".into()]);
    let args = std::iter::once(OsString::from("flexkv")).chain(argv);
    let code = py.detach(|| flexkv::cli::run(args, &again));
    Ok(number(code))
}

/// The number that the standard library keeps to itself.
fn number(code: ExitCode) -> u8 {
    let is = |number: &u8| ExitCode::from(*number) == code;
    (0..=u8::MAX).find(is).unwrap_or(1)
}
