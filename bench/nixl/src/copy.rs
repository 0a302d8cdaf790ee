//! The same bytes by `memcpy` within one process, on one core: what no transport between two processes can beat with one core.

use anyhow::{Context as _, Result, bail};
use nixl::{HugePages, Memory};

use crate::source::fill;
use crate::work::{Blocks, Moved, Mover, Peer};

#[derive(Debug)]
pub(crate) struct Copy {
    source: Vec<u8>,
    destination: Memory,
    block_bytes: u64,
    /// Offset at the source, offset here, length: neighbours are one piece, as in a read.
    pieces: Vec<(usize, u64, usize)>,
}

impl Copy {
    pub(crate) fn new(source_bytes: u64, bytes: u64) -> Result<Self> {
        let mut source = vec![0; usize::try_from(source_bytes)?];
        let mut write = |offset: u64, word: &[u8]| {
            let at = usize::try_from(offset)?;
            source.get_mut(at..).and_then(|rest| rest.get_mut(..word.len())).context("inside")?.copy_from_slice(word);
            Ok(())
        };
        fill(&mut write, source_bytes)?;
        let destination = Memory::host(bytes, HugePages::Try)?;
        Ok(Self { source, destination, block_bytes: 0, pieces: Vec::new() })
    }
}

impl Mover for Copy {
    fn peer(&mut self, _peer: &Peer) -> Result<()> {
        bail!("a copy has no peer")
    }

    fn blocks(&mut self, blocks: &Blocks) -> Result<()> {
        self.block_bytes = blocks.block_bytes;
        self.pieces.clear();
        let len = usize::try_from(blocks.block_bytes)?;
        for (position, id) in (0_u64..).zip(&blocks.ids) {
            let from = usize::try_from(u64::from(*id) * blocks.block_bytes)?;
            match self.pieces.last_mut() {
                Some(piece) if piece.0 + piece.2 == from => piece.2 += len,
                Some(_) | None => self.pieces.push((from, position * blocks.block_bytes, len)),
            }
        }
        Ok(())
    }

    fn once(&mut self) -> Result<Moved> {
        for (from, to, len) in &self.pieces {
            let bytes = self.source.get(*from..).and_then(|rest| rest.get(..*len)).context("a block outside")?;
            self.destination.write_at(*to, bytes)?;
        }
        Ok(Moved { pieces: self.pieces.len(), ..Moved::default() })
    }

    fn lands_at(&self, position: usize) -> Option<u64> {
        u64::try_from(position).ok()?.checked_mul(self.block_bytes)
    }

    fn word(&self, offset: u64) -> Result<u64> {
        let mut word = [0; 8];
        self.destination.read_at(offset, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    fn forget(&mut self, offset: u64) -> Result<()> {
        Ok(self.destination.write_at(offset, &[0xff; 8])?)
    }
}
