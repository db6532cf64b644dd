//! Which fetches a load gives up, and the slots that this leaves to others. Knows nothing of whom to ask.

use std::time::Duration;

use tokio::time::Instant;

use super::{Awaited, Load};

/// Slots of a fetch that was given up come back within this time, or not soon.
const SLOTS_RETURN: Duration = Duration::from_millis(500);
/// How often they are looked for.
const SLOTS_PAUSE: Duration = Duration::from_millis(2);

impl Load {
    /// Gives up fetches of which nothing is needed any more.
    pub(super) fn let_go(&mut self) {
        let missing: Vec<bool> = self.pins[..self.limit]
            .iter()
            .map(Option::is_none)
            .collect();
        let needed = |index: usize| missing.get(index) == Some(&true);
        self.give_up(|awaited| !awaited.places.iter().any(|(_, i)| needed(*i)));
    }

    /// Whether a fetch that is not late brings the block.
    pub(super) fn comes_soon(&self, index: usize) -> bool {
        let awaited = self.awaited.values().filter(|awaited| !awaited.late);
        awaited.flat_map(|it| &it.places).any(|(_, i)| *i == index)
    }

    /// Gives up what is late, so that others can bring it in the same slots. Says when to look for free
    /// ones again, if some of this load's may be about to come back.
    pub(super) fn make_room(&mut self) -> Option<Instant> {
        self.give_up(|awaited| awaited.late);
        let now = Instant::now();
        let given_up = self.given_up?;
        (now < given_up + SLOTS_RETURN).then_some(now + SLOTS_PAUSE)
    }

    /// Waits no longer for some fetches.
    fn give_up(&mut self, which: impl Fn(&Awaited) -> bool) {
        let before = self.awaited.len();
        self.awaited.retain(|_, awaited| !which(awaited));
        if self.awaited.len() < before {
            self.given_up = Some(Instant::now());
        }
    }
}
