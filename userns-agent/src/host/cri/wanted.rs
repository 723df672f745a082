//! Containers that the kernel has shown and the runtime has not told yet: when to ask for each. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// When a container's cgroup appears, its runtime may list it at once or only after some work. It is asked for at
/// these times after each other, beginning when the cgroup was seen; after that the next list has it.
const DELAYS: [Duration; 6] = [
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(90),
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(3),
];
/// Least time between two questions.
const GAP: Duration = Duration::from_millis(5);
/// The first questions are spared where an event is likely to come first.
pub(super) const AFTER_EVENTS: usize = 2;
/// Containers asked for at a time.
const MOST: usize = 256;

/// Containers to ask for.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// When to ask next, and how often it was asked.
    ids: BTreeMap<String, (Instant, usize)>,
    last: Option<Instant>,
}

impl Wanted {
    /// Takes note of one, to be asked for as if it had been `asked` so often; false if there are too many.
    pub(super) fn add(&mut self, id: String, asked: usize, now: Instant) -> bool {
        let room = self.ids.len() < MOST || self.ids.contains_key(&id);
        if room && let Some(delay) = DELAYS.get(asked) {
            self.ids.entry(id).or_insert((now + *delay, asked));
        }
        room
    }

    /// When the next question is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let next = self.ids.values().map(|(due, _)| *due).min()?;
        Some(self.last.map_or(next, |last| next.max(last + GAP)))
    }

    /// The id that is due, which is then due again later until the runtime tells it, or it was asked often enough.
    pub(super) fn take(&mut self, now: Instant) -> Option<String> {
        let (id, (due, asked)) = self.ids.iter_mut().min_by_key(|(_, (due, _))| *due)?;
        let id = id.clone();
        *asked += 1;
        match DELAYS.get(*asked) {
            Some(delay) => *due = now + *delay,
            None => {
                self.ids.remove(&id);
            }
        }
        self.last = Some(now);
        Some(id)
    }

    /// Drops those of which nothing is to be asked any more.
    pub(super) fn drop_if(&mut self, known: impl Fn(&str) -> bool) {
        self.ids.retain(|id, _| !known(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_asked_for_some_times_and_less_and_less_often() {
        let (mut wanted, start) = (Wanted::default(), Instant::now());
        assert!(wanted.add("a".into(), 0, start) && wanted.add("a".into(), 2, start));
        let mut times = Vec::new();
        while let Some(due) = wanted.due() {
            assert_eq!(wanted.take(due).as_deref(), Some("a"));
            times.push(due.duration_since(start).as_millis());
        }
        assert_eq!(times, [20, 60, 150, 400, 1400, 4400]);
    }

    #[test]
    fn questions_keep_their_distance_and_are_bounded() {
        let (mut wanted, start) = (Wanted::default(), Instant::now());
        for n in 0..MOST {
            assert!(wanted.add(format!("{n}"), 0, start));
        }
        assert!(!wanted.add("more".into(), 0, start));
        let first = wanted.due().unwrap();
        wanted.take(first);
        assert_eq!(wanted.due(), Some(first + GAP));
        wanted.drop_if(|_| true);
        assert_eq!(wanted.due(), None);
    }
}
