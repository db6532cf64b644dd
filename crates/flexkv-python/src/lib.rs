//! `flexkv._native`: keys, sessions, copies and the command, as the Python half uses them.
//!
//! Converts values and lets go of the interpreter while it waits; decides nothing itself, and knows
//! nothing of vLLM. What Python sees is described in `python/flexkv/_native.pyi`.

mod attachment;
mod command;
mod copier;
mod error;
mod keys;

use pyo3::prelude::*;

/// The native half of the package `flexkv`.
#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("FlexkvError", py.get_type::<error::FlexkvError>())?;
    module.add("NodeGone", py.get_type::<error::NodeGone>())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<keys::KeyChain>()?;
    module.add_class::<attachment::Attachment>()?;
    module.add_class::<copier::Copier>()?;
    module.add_function(wrap_pyfunction!(keys::derive_root, module)?)?;
    module.add_function(wrap_pyfunction!(command::run_command, module)?)
}
