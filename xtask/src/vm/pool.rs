//! Work done several pieces at a time.

use std::{
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
};

/// As many as the machine has processors: a guest keeps one busy.
pub(super) fn default_jobs() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Does `work` with every item, `jobs` of them at a time and the last ones first; the results are in the items' order.
pub(super) fn run<T: Send, R: Send>(items: Vec<T>, jobs: usize, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let queue: Mutex<Vec<(usize, T)>> = Mutex::new(items.into_iter().enumerate().collect());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let worker = || {
        let mut done = Vec::new();
        while let Some((index, item)) = next() {
            done.push((index, work(item)));
        }
        done
    };
    let mut results: Vec<(usize, R)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        let join = |handle: thread::ScopedJoinHandle<'_, _>| {
            handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().flat_map(join).collect()
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn results_are_in_order_and_work_is_side_by_side() {
        let both = Barrier::new(2);
        let doubled = run(vec![1, 2, 3, 4], 2, |number| {
            both.wait();
            number * 2
        });
        assert_eq!(doubled, [2, 4, 6, 8]);
        assert_eq!(run(vec![1, 2], 0, |number| number), [1, 2]);
    }
}
