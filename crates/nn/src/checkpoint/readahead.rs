//! Reading ahead of the loading. Tensors are packed in the model's order and page by page, so left to itself the disk is
//! idle whenever the CPU is not and seeks where the file's order is another; here one thread asks for the files from
//! front to back in large pieces, and what it asked for lies in the page cache when it is packed.
//!
//! It must never know a tensor: it counts bytes.

use std::hint::black_box;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use memmap2::{Advice, Mmap};

use super::map;

/// Bytes that are asked for at a time.
const PIECE: usize = 8 << 20;
/// Pieces that are asked for before the first of them must have come: enough for the disk to have a queue.
const IN_FLIGHT: usize = 4;

/// A reading of a checkpoint's files into the page cache, which ends with them, or when this is dropped.
pub struct ReadAhead {
    account: Arc<Account>,
    thread: Option<JoinHandle<()>>,
}

/// How far the loading is.
#[derive(Debug, Default)]
pub(super) struct Account {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    is_stopped: bool,
}

impl Account {
    /// Bytes of the files are about to be used.
    pub(super) fn note_use(&self, bytes: usize) {
        self.lock().used += bytes as u64;
        self.changed.notify_all();
    }

    /// Waits until so many bytes were used; false if the reading is to end.
    fn wait_for(&self, used: u64) -> bool {
        let state = self.lock();
        let waiting = |state: &mut State| !state.is_stopped && state.used < used;
        let state = self.changed.wait_while(state, waiting).unwrap_or_else(PoisonError::into_inner);
        !state.is_stopped
    }

    fn stop(&self) {
        self.lock().is_stopped = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadAhead {
    /// Reads `files` one after the other, at most `window` bytes ahead of what `account` says was used of them.
    pub(super) fn start(files: Vec<PathBuf>, account: Arc<Account>, window: u64) -> Self {
        account.lock().is_stopped = false;
        let reading = account.clone();
        let read = move || {
            let mut asked = 0;
            for path in files {
                // What cannot be read is the loading's to report.
                let Ok(file) = map(&path) else { return };
                if !read_file(&file, &mut asked, &reading, window) {
                    return;
                }
            }
        };
        // Without it the loading is slower, and no less right.
        let thread = std::thread::Builder::new().name("read-ahead".into()).spawn(read).ok();
        Self { account, thread }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.account.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Asks for a file's pieces; false if the reading is to end. `asked` counts the bytes, this file's and those before.
fn read_file(file: &Mmap, asked: &mut u64, account: &Account, window: u64) -> bool {
    let pieces: Vec<_> = pieces(file.len()).collect();
    for (index, piece) in pieces.iter().enumerate() {
        *asked += piece.len() as u64;
        if !account.wait_for(asked.saturating_sub(window)) {
            return false;
        }
        if file.advise_range(Advice::WillNeed, piece.start, piece.len()).is_err() {
            return false;
        }
        // Its last byte is there once it is read: the disk, not this thread, sets the pace.
        if let Some(earlier) = index.checked_sub(IN_FLIGHT) {
            black_box(file[pieces[earlier].end - 1]);
        }
    }
    true
}

fn pieces(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(PIECE).map(move |start| start..len.min(start + PIECE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_file_once() {
        assert_eq!(pieces(0).count(), 0);
        for len in [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7] {
            let ends = pieces(len).fold(0, |end, piece| {
                assert!(piece.start == end && piece.len() <= PIECE && !piece.is_empty());
                piece.end
            });
            assert_eq!(ends, len);
        }
    }

    #[test]
    fn it_waits_for_use_and_ends_when_dropped() {
        let path = std::env::temp_dir().join(format!("plimsoll-read-ahead-{}", std::process::id()));
        std::fs::write(&path, vec![1; 3 * PIECE]).unwrap();
        let account = Arc::new(Account::default());
        let missing = path.with_extension("missing");
        // Nothing is used and no byte may be read ahead: it waits until it is dropped.
        drop(ReadAhead::start(vec![path.clone()], account.clone(), 0));
        // All is used: it comes to the end, and passes over what it cannot read.
        account.note_use(3 * PIECE);
        let mut reading = ReadAhead::start(vec![path.clone(), missing], account, 0);
        reading.thread.take().unwrap().join().unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
