//! Counters of refusals, one a reason. Knows no exporter: they go through the `metrics` facade.

use metrics::{Counter, Key, Label, Level, Metadata, Recorder, Unit};

use crate::Refusal;

const NAME: &str = "flexkv_peer_refusals_total";
const HELP: &str = "Connections and requests of peers that were refused, by reason";

/// How often an owner refused, by reason. The default counts nothing.
#[derive(Clone)]
pub struct Refusals([Counter; Refusal::ALL.len()]);

impl Refusals {
    /// Counters of the node called `node` for the transport called `transport`.
    pub fn register(recorder: &dyn Recorder, node: &str, transport: &str) -> Self {
        recorder.describe_counter(NAME.into(), Some(Unit::Count), HELP.into());
        let metadata = Metadata::new(module_path!(), Level::INFO, None);
        Self(Refusal::ALL.map(|refusal| {
            let labels = vec![
                Label::new("node", node.to_owned()),
                Label::new("transport", transport.to_owned()),
                Label::new("reason", refusal.name()),
            ];
            recorder.register_counter(&Key::from_parts(NAME, labels), &metadata)
        }))
    }

    /// Counts one.
    pub fn count(&self, refusal: Refusal) {
        self.0[refusal as usize - 1].increment(1);
    }
}

impl Default for Refusals {
    fn default() -> Self {
        Self(Refusal::ALL.map(|_| Counter::noop()))
    }
}

impl std::fmt::Debug for Refusals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Refusals(..)")
    }
}
