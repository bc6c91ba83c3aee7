//! Work on all cores, within a bound of memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::EncodeError;

/// The memory for aligning that is used at once.
const ALIGN_MEMORY: u64 = 900 << 20;

/// A worker that panicked has done its harm: the others go on.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory for aligning, shared by the workers. A file that takes more than all of it waits until it is alone.
#[derive(Default)]
pub(super) struct Budget {
    used: Mutex<u64>,
    freed: Condvar,
}

pub(super) struct Share<'a>(&'a Budget, u64);

impl Budget {
    pub(super) fn take(&self, bytes: u64) -> Share<'_> {
        let mut used = lock(&self.used);
        while *used > 0 && *used + bytes > ALIGN_MEMORY {
            used = self.freed.wait(used).unwrap_or_else(PoisonError::into_inner);
        }
        *used += bytes;
        Share(self, bytes)
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *lock(&self.0.used) -= self.1;
        self.0.freed.notify_all();
    }
}

/// Does one thing to each of many, in parallel; the results are in order.
pub(super) fn in_parallel<T: Sync, O: Send>(
    work: &[T],
    threads: usize,
    each: impl Fn(&T) -> Result<O, EncodeError> + Sync,
) -> Result<Vec<O>, EncodeError> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.min(work.len()) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(one) = work.get(number) else { break };
                    let result = each(one);
                    lock(&done).insert(number, result);
                }
            });
        }
    });
    done.into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .into_values()
        .collect()
}
