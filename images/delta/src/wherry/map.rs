//! Where the bytes of an old file went: a function from old offsets to new ones, made from the alignment's blocks.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;

use super::Fault;
use super::wire::Account;

/// The most blocks a map is made of. An encoder leaves the shortest out.
pub(super) const MAX_BLOCKS: usize = 1 << 16;

/// Old bytes that became new ones, as many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) old: u32,
    pub(super) new: u32,
    pub(super) length: u32,
}

impl Block {
    fn end(&self) -> u32 {
        self.old.saturating_add(self.length)
    }
}

/// A stretch of old offsets that moved together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    from: u32,
    to: u32,
    /// Added to an old offset, modulo 2^32, makes the new one.
    shift: u32,
}

/// The function.
#[derive(Debug, Default)]
pub(super) struct Map(Vec<Stretch>);

impl Map {
    /// Where blocks overlap in the old file the longest decides, of equally long ones the one that begins first, then the first in the list.
    pub(super) fn new(blocks: &mut [Block], account: &mut Account) -> Result<Self, Fault> {
        let mut map = Self::default();
        // A heap that holds all of them at once is the worst case.
        let heap_bytes = blocks
            .len()
            .saturating_mul(size_of::<(u32, core::cmp::Reverse<u32>)>());
        account.take(heap_bytes)?;
        let mut heap = BinaryHeap::with_capacity(blocks.len());
        // The list is in the order of the new file: of blocks that begin at the same place the first in the list comes first.
        blocks.sort_unstable_by_key(|block| (block.old, block.new));
        let mut next = 0;
        let mut at = 0;
        loop {
            if heap.is_empty() {
                let Some(block) = blocks.get(next) else { break };
                at = block.old;
            }
            while let Some(block) = blocks.get(next).filter(|block| block.old <= at) {
                heap.push((block.length, core::cmp::Reverse(next as u32)));
                next += 1;
            }
            let longest = |heap: &BinaryHeap<(u32, core::cmp::Reverse<u32>)>| {
                heap.peek()
                    .and_then(|&(_, number)| blocks.get(number.0 as usize).copied())
            };
            let Some(block) = longest(&heap) else { break };
            if block.end() <= at {
                heap.pop();
                continue;
            }
            let to = blocks
                .get(next)
                .map_or(block.end(), |next| next.old.min(block.end()));
            let shift = block.new.wrapping_sub(block.old);
            match map.0.last_mut() {
                Some(last) if last.to == at && last.shift == shift => last.to = to,
                _ => account.push(&mut map.0, Stretch { from: at, to, shift })?,
            }
            at = to;
        }
        account.give(heap_bytes);
        Ok(map)
    }

    /// Where an old offset went. One that no block covers went with its nearest neighbour.
    pub(super) fn at(&self, old: u32) -> u32 {
        let next = self.0.partition_point(|stretch| stretch.from <= old);
        let before = next.checked_sub(1).and_then(|number| self.0.get(number));
        let after = self.0.get(next);
        let stretch = match (before, after) {
            (Some(before), _) if old < before.to => before,
            (Some(before), Some(after)) if old - before.to < after.from - old => before,
            (_, Some(after)) => after,
            (Some(before), None) => before,
            (None, None) => return old,
        };
        old.wrapping_add(stretch.shift)
    }

    pub(super) fn release(self, account: &mut Account) {
        account.release(self.0);
    }
}
