//! The commands of a participant that moves bytes, and its answers.

use std::io::{BufRead as _, Write as _, stderr, stdin, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::counted::allocations;

/// The first word of each of these is its own offset at the source.
pub(crate) const PAGE: u64 = 4096;

/// Who is read from.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    pub(crate) metadata: Vec<u8>,
}

/// What is moved.
#[derive(Clone, Debug)]
pub(crate) struct Blocks {
    pub(crate) block_bytes: u64,
    /// Positions in the source's memory, in prompt order.
    pub(crate) ids: Vec<u32>,
}

/// How one move went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moved {
    /// What the transport says that it took itself, from the post to the moment at which the end was seen.
    pub(crate) wire: Duration,
    /// Descriptors, or pieces of a copy.
    pub(crate) pieces: usize,
}

/// What moves bytes.
pub(crate) trait Mover {
    /// From now on from this process.
    fn peer(&mut self, peer: &Peer) -> Result<()>;
    /// From now on these.
    fn blocks(&mut self, blocks: &Blocks) -> Result<()>;
    /// Moves them once, from the list of ids to the last byte in place.
    fn once(&mut self) -> Result<Moved>;
    /// Where the block at `position` of the prompt lands, as an offset in the destination.
    fn lands_at(&self, position: usize) -> Option<u64>;
    /// Reads a word of the destination.
    fn word(&self, offset: u64) -> Result<u64>;
    /// Overwrites one.
    fn forget(&mut self, offset: u64) -> Result<()>;
}

/// Does what standard input says until it ends.
pub(crate) fn obey(mut mover: impl Mover) -> Result<()> {
    let mut blocks = Blocks { block_bytes: PAGE, ids: Vec::new() };
    say(&json!({ "ready": true }))?;
    for line in stdin().lock().lines() {
        let line = line.context("read a command")?;
        let mut words = line.split_ascii_whitespace();
        let answer = match words.next() {
            Some("peer") => {
                let (base, bytes) = (number(words.next())?, number(words.next())?);
                let metadata = unhex(words.next().unwrap_or_default()).context("metadata is not hexadecimal")?;
                mover.peer(&Peer { base, bytes, metadata })?;
                json!({ "ok": true })
            }
            Some("blocks") => {
                let block_bytes = number(words.next())?;
                let ids = words.map(str::parse).collect::<Result<Vec<u32>, _>>().context("block ids")?;
                ensure!(!ids.is_empty() && block_bytes.is_multiple_of(PAGE), "no blocks, or not of whole pages");
                blocks = Blocks { block_bytes, ids };
                mover.blocks(&blocks)?;
                json!({ "ok": true })
            }
            Some("run") => {
                let seconds = words.next().unwrap_or_default().parse().context("seconds")?;
                run(&mut mover, &blocks, Duration::from_secs_f64(seconds), number(words.next())?)?
            }
            Some(_) | None => bail!("no such command: {line}"),
        };
        say(&answer)?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "what is measured is real time")]
fn now() -> Instant {
    Instant::now()
}

fn run(mover: &mut impl Mover, blocks: &Blocks, within: Duration, most: u64) -> Result<Value> {
    for offset in firsts(mover, blocks)? {
        mover.forget(offset.1)?;
    }
    let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
    let (mut took, mut wire) = (Vec::with_capacity(most), Vec::with_capacity(most));
    let (mut pieces, mut last, mut allocated) = (0, now(), allocations());
    let begun = last;
    while took.len() < most && (took.is_empty() || last.duration_since(begun) < within) {
        let moved = mover.once()?;
        let end = now();
        took.push(nanos(end.duration_since(last)));
        wire.push(nanos(moved.wire));
        (pieces, last) = (moved.pieces, end);
    }
    allocated = allocations().saturating_sub(allocated);
    let mut wrong = 0_u32;
    for (expected, offset) in firsts(mover, blocks)? {
        wrong += u32::from(mover.word(offset)? != expected);
    }
    let runs = took.len();
    Ok(json!({ "ns": took, "wire_ns": wire, "pieces": pieces, "wrong": wrong, "allocations": allocated, "runs": runs }))
}

/// For the first page of each block: what its first word must be, and where it lands.
fn firsts(mover: &impl Mover, blocks: &Blocks) -> Result<Vec<(u64, u64)>> {
    let place = |(position, id): (usize, &u32)| {
        let offset = mover.lands_at(position).context("a block without a place")?;
        Ok((u64::from(*id) * blocks.block_bytes, offset))
    };
    blocks.ids.iter().enumerate().map(place).collect()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn number(word: Option<&str>) -> Result<u64> {
    word.unwrap_or_default().parse().context("a number is missing")
}

/// One line to whoever steers.
pub(crate) fn say(answer: &Value) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{answer}")?;
    Ok(out.flush()?)
}

/// The last words.
pub(crate) fn complain(error: &anyhow::Error) {
    // Nobody may be reading; the exit code says it too.
    drop(writeln!(stderr(), "bench-nixl: {error:#}"));
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}
