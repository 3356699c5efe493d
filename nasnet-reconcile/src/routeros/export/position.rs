//! Offsets of the input as line and column.

use std::cell::Cell;

/// Finds lines and columns. Columns count characters from 1; bytes that continue a UTF-8 character do not count.
#[derive(Debug)]
pub(super) struct Positions<'a> {
    input: &'a [u8],
    line_starts: Vec<usize>,
    /// The last answer: counting goes on from there, so that many questions about one long line stay cheap.
    last: Cell<(usize, usize, u32)>,
}

impl<'a> Positions<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        let breaks = input.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1);
        Self { input, line_starts: std::iter::once(0).chain(breaks).collect(), last: Cell::new((0, 0, 1)) }
    }

    /// Returns the line, counted from 1.
    pub(super) fn line(&self, at: usize) -> u32 {
        clamp(self.line_starts.partition_point(|start| *start <= at))
    }

    /// Returns the number of lines; text behind the last line break is one.
    pub(super) fn lines(&self) -> u32 {
        let unfinished = self.line_starts.last().is_some_and(|start| *start < self.input.len());
        clamp(self.line_starts.len() - usize::from(!unfinished))
    }

    /// Returns line and column, both counted from 1.
    pub(super) fn line_and_column(&self, at: usize) -> (u32, u32) {
        let line = self.line_starts.partition_point(|start| *start <= at);
        let start = self.line_starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let (last_line, last_at, last_column) = self.last.get();
        let characters = |from: usize, to: usize| {
            let bytes = self.input.get(from..to.min(self.input.len())).unwrap_or_default();
            clamp(bytes.iter().filter(|b| !(0x80..0xC0).contains(*b)).count())
        };
        let column = if last_line != line {
            1 + characters(start, at)
        } else if last_at <= at {
            last_column + characters(last_at, at)
        } else {
            last_column.saturating_sub(characters(at, last_at)).max(1)
        };
        self.last.set((line, at, column));
        (clamp(line), column)
    }
}

fn clamp(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_the_same_in_every_order_of_asking() {
        let input = "ab\nBüro x\n\nlast".as_bytes();
        let fresh = |at| Positions::new(input).line_and_column(at);
        let shared = Positions::new(input);
        for at in (0..=input.len()).chain((0..=input.len()).rev()).chain([9, 2, 7, 12, 4]) {
            assert_eq!(shared.line_and_column(at), fresh(at), "offset {at}");
        }
        assert_eq!(fresh(9), (2, 6));
        assert_eq!(shared.lines(), 4);
        assert_eq!(Positions::new(b"a\n").lines(), 1);
        assert_eq!(Positions::new(b"").lines(), 0);
    }
}
