//! In which order a table's entries stand in the tar: a walk through their tree.

use alloc::vec;
use alloc::vec::Vec;

use super::Fault;
use super::table::Table;
use super::wire::Account;

/// The order column's values: among the nearest directory's that are left; by number; so many directories further up, plus one.
pub(super) const UP_NEAREST: u64 = 0;
pub(super) const UP_ABSOLUTE: u64 = 1;
pub(super) const UP_FURTHER: u64 = 2;

const BAD: Fault = Fault::Corrupt("a table names an entry that is not there, or not there any more");

/// The walk through a tree in the tar's order: encoder and decoder take the same.
#[derive(Debug)]
pub(super) struct Walk {
    /// Each entry's directory; the root is the last number.
    parent: Vec<u32>,
    /// Where each directory's children stand in `children`.
    first: Vec<u32>,
    /// The children that the walk has not met yet, at the front of each directory's part.
    children: Vec<u32>,
    left: Vec<u32>,
    last: u32,
}

impl Walk {
    /// A walk over a table whose items have their paths.
    pub(super) fn new(table: &Table, account: &mut Account) -> Result<Self, Fault> {
        let count = table.items.len();
        account.take((count + 2) * 5 * size_of::<u32>())?;
        let root = count as u32;
        let mut parent = vec![root; count + 1];
        let mut above: Vec<u32> = Vec::new();
        for (number, item) in table.items.iter().enumerate() {
            let path = table.span(item.path);
            while let Some(&top) = above.last() {
                let directory = table
                    .items
                    .get(top as usize)
                    .map_or(&[][..], |item| table.span(item.path));
                let beneath = path
                    .strip_prefix(directory)
                    .is_some_and(|rest| rest.starts_with(b"/"));
                if beneath && !directory.is_empty() {
                    break;
                }
                above.pop();
            }
            if let (Some(to), Some(&top)) = (parent.get_mut(number), above.last()) {
                *to = top;
            }
            above.push(number as u32);
        }
        let mut left = vec![0u32; count + 1];
        for &parent in parent.iter().take(count) {
            if let Some(left) = left.get_mut(parent as usize) {
                *left += 1;
            }
        }
        let mut first = vec![0u32; count + 2];
        let mut sum = 0;
        for (to, left) in first.iter_mut().zip(&left) {
            *to = sum;
            sum += left;
        }
        let mut children = vec![0u32; count];
        let mut filled = first.clone();
        for (number, &parent) in parent.iter().take(count).enumerate() {
            if let Some(at) = filled.get_mut(parent as usize) {
                if let Some(to) = children.get_mut(*at as usize) {
                    *to = number as u32;
                }
                *at += 1;
            }
        }
        Ok(Self {
            parent,
            first,
            children,
            left,
            last: root,
        })
    }

    fn root(&self) -> u32 {
        self.children.len() as u32
    }

    fn left_in(&self, directory: u32) -> u32 {
        self.left.get(directory as usize).copied().unwrap_or(0)
    }

    fn parent_of(&self, number: u32) -> u32 {
        self.parent.get(number as usize).copied().unwrap_or(self.root())
    }

    /// The children of a directory that are left.
    pub(super) fn rest(&self, directory: u32) -> &[u32] {
        let from = self.first.get(directory as usize).copied().unwrap_or(0) as usize;
        let length = self.left_in(directory) as usize;
        self.children.get(from..from + length).unwrap_or_default()
    }

    /// The nearest directory with something left, from `from` upwards.
    fn nearest(&self, from: u32) -> u32 {
        let mut directory = from;
        while self.left_in(directory) == 0 && directory != self.root() {
            directory = self.parent_of(directory);
        }
        directory
    }

    /// The entry that comes next.
    pub(super) fn next(&mut self, up: u64, rank: usize) -> Result<u32, Fault> {
        let (directory, rank) = if up == UP_ABSOLUTE {
            let number = u32::try_from(rank)
                .ok()
                .filter(|&number| number < self.root())
                .ok_or(BAD)?;
            let directory = self.parent_of(number);
            let rank = self
                .rest(directory)
                .iter()
                .position(|&left| left == number)
                .ok_or(BAD)?;
            (directory, rank)
        } else {
            let mut directory = self.nearest(self.last);
            let further = if up == UP_NEAREST { 0 } else { up - UP_FURTHER + 1 };
            for _ in 0..further {
                if directory == self.root() {
                    return Err(BAD);
                }
                directory = self.nearest(self.parent_of(directory));
            }
            (directory, rank)
        };
        let from = self.first.get(directory as usize).copied().unwrap_or(0) as usize;
        let length = self.left_in(directory) as usize;
        let rest = self.children.get_mut(from..from + length).ok_or(BAD)?;
        let number = *rest.get(rank).ok_or(BAD)?;
        rest.copy_within(rank + 1.., rank);
        if let Some(left) = self.left.get_mut(directory as usize) {
            *left -= 1;
        }
        self.last = number;
        Ok(number)
    }

    /// How the encoder names an entry that comes next.
    #[cfg(feature = "publish")]
    pub(super) fn name(&self, number: u32) -> (u64, u64) {
        let wanted = self.parent_of(number);
        let mut directory = self.nearest(self.last);
        let mut up = UP_NEAREST;
        loop {
            if directory == wanted {
                let rank = self.rest(directory).iter().position(|&left| left == number);
                return (up, rank.unwrap_or_default() as u64);
            }
            if directory == self.root() {
                return (UP_ABSOLUTE, u64::from(number));
            }
            directory = self.nearest(self.parent_of(directory));
            up = if up == UP_NEAREST { UP_FURTHER } else { up + 1 };
        }
    }

    pub(super) fn release(self, account: &mut Account) {
        account.give((self.root() as usize + 2) * 5 * size_of::<u32>());
    }
}
