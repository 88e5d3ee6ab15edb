//! What the two sides have announced by SETTINGS, and from when on it counts.
//!
//! A setting counts for its receiver once that has acknowledged it; its sender cannot tell before the acknowledgement
//! comes, and may be met by either until then. Acknowledgements carry no number and come in order, so what is under way
//! is kept in order, of each side:
//!
//! - of the **client**: until the original acknowledges it. A smaller window waits, as [`Agreement::held`], until developers'
//!   servers keep to it as well, and everything that was sent before has left.
//! - of the **original**, and of our own: until the client acknowledges it. Only the original's is passed on.
//!
//! Changes of a table of HPACK are said at the beginning of the next header block (RFC 7541 4.2). Whoever writes that
//! block says it: the original its own, and we for blocks that are written here.

use std::collections::VecDeque;

use super::MAX_UNACKED;
use super::write::put_table;
use crate::h2::frame::{FRAME_SIZE, code};
use crate::h2::settings::{DEFAULT_TABLE, DEFAULT_WINDOW, Settings};

/// A change of a table: the least size, then the last.
type TableUpdate = (usize, usize);

/// Who has sent settings to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Whose {
    /// The original destination, which awaits the acknowledgement.
    Theirs,
    /// We.
    Ours,
}

/// Settings of the client that the original destination has not acknowledged.
#[derive(Clone, Copy, Debug)]
struct Unacked {
    settings: Settings,
    /// Windows become smaller: the client holds everyone to it from the acknowledgement on.
    shrinks: bool,
    /// The original had requests before, and may answer them by what counted then.
    asked: bool,
    /// We have acknowledged it, as the original was still being dialled.
    early: bool,
}

/// What the original's acknowledgement means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Acknowledged {
    /// It is passed on, and these count.
    Now(Settings),
    /// Blocks before it are written by one table and those behind it by another, so it keeps its place among them. Those
    /// that are held go before it.
    InOrder(Settings),
    /// It waits until everybody keeps to it.
    Later,
    /// The client has it already.
    Early,
    /// Of settings that nobody has sent.
    Unasked,
}

/// The settings of one client connection.
#[derive(Debug)]
pub(super) struct Agreement {
    /// The last that the client has announced, whoever has acknowledged it.
    initial_window: u32,
    max_header_list: Option<u32>,
    unacked_client: VecDeque<Unacked>,
    held: VecDeque<Settings>,
    /// INITIAL_WINDOW_SIZE of the client as it was acknowledged.
    client_initial: u32,
    /// INITIAL_WINDOW_SIZE of the original as the client knows it.
    initial: i64,
    unacked_original: VecDeque<(Whose, Settings)>,
    /// Streams that the client may have open, and the largest frame that it may send.
    max_streams: u32,
    max_frame: usize,
    /// What is to be said of tables with the next block to the original, and to the client.
    original_table: Option<TableUpdate>,
    client_table: Option<TableUpdate>,
}

impl Default for Agreement {
    fn default() -> Self {
        Self {
            initial_window: DEFAULT_WINDOW,
            max_header_list: None,
            unacked_client: VecDeque::new(),
            held: VecDeque::new(),
            client_initial: DEFAULT_WINDOW,
            initial: DEFAULT_WINDOW.into(),
            unacked_original: VecDeque::new(),
            max_streams: u32::MAX,
            max_frame: FRAME_SIZE,
            original_table: None,
            client_table: None,
        }
    }
}

impl Agreement {
    /// The client has announced settings, and nobody has acknowledged them. `asked`: the original has requests already.
    ///
    /// # Errors
    /// When too many wait for that; `more` are counted elsewhere.
    pub(super) fn client_announced(
        &mut self,
        settings: Settings,
        more: usize,
        asked: bool,
    ) -> Result<(), u32> {
        if self.unacked_client.len() + self.held.len() + more >= MAX_UNACKED {
            return Err(code::ENHANCE_YOUR_CALM);
        }
        let before = self.initial_window;
        self.initial_window = settings.initial_window_size.unwrap_or(before);
        self.max_header_list = settings.max_header_list_size.or(self.max_header_list);
        let shrinks = self.initial_window < before;
        self.unacked_client.push_back(Unacked { settings, shrinks, asked, early: false });
        Ok(())
    }

    /// The original has acknowledged settings of the client. `owed`: somebody may still send by larger windows. `blocks`:
    /// blocks of the original are held.
    pub(super) fn original_acknowledged(&mut self, owed: bool, blocks: bool) -> Acknowledged {
        let Some(Unacked { settings, shrinks, early, .. }) = self.unacked_client.pop_front() else {
            return Acknowledged::Unasked;
        };
        if early {
            return Acknowledged::Early;
        }
        let of_table = settings.header_table_size.is_some();
        if of_table {
            if blocks { Acknowledged::InOrder(settings) } else { Acknowledged::Now(settings) }
        } else if shrinks && owed || !self.held.is_empty() {
            self.held.push_back(settings);
            Acknowledged::Later
        } else {
            Acknowledged::Now(settings)
        }
    }

    /// The next to be acknowledged before the original has, if that may be. `owed`: somebody may still send by larger
    /// windows.
    pub(super) fn acknowledge_early(&mut self, owed: bool) -> Option<Settings> {
        let unacked = self.unacked_client.iter_mut().find(|unacked| !unacked.early)?;
        let of_table = unacked.settings.header_table_size.is_some();
        if unacked.shrinks && owed || unacked.asked && (unacked.shrinks || of_table) || !self.held.is_empty()
        {
            return None;
        }
        unacked.early = true;
        Some(unacked.settings)
    }

    /// One whose acknowledgement was held, the oldest.
    pub(super) fn take_held(&mut self) -> Option<Settings> {
        self.held.pop_front()
    }

    /// Some acknowledgement is held.
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Settings of the client wait for others than the original. `dialling`: for the original they do not wait.
    pub(super) fn waits(&self, dialling: bool) -> bool {
        let mut unacked = self.unacked_client.iter();
        self.holds() || dialling && unacked.any(|unacked| unacked.shrinks && !unacked.early)
    }

    /// The original will acknowledge no more.
    pub(super) fn original_ended(&mut self) {
        let unacked = self.unacked_client.drain(..).filter(|unacked| !unacked.early);
        self.held.extend(unacked.map(|unacked| unacked.settings));
    }

    /// The client's settings count from here on. Whether its windows have changed by that.
    pub(super) fn client_counts(&mut self, settings: &Settings) -> bool {
        if let Some((last, least)) = settings.header_table_size {
            self.client_table = Some(merge(self.client_table, (least as usize, last as usize)));
        }
        self.client_initial = settings.initial_window_size.unwrap_or(self.client_initial);
        settings.initial_window_size.is_some()
    }

    /// The window for new streams that the client is certain to have in mind: it may count a larger one only from the
    /// acknowledgement on, and a smaller one too.
    pub(super) fn certain_initial(&self) -> u32 {
        let unacked = self.unacked_client.iter().filter(|unacked| !unacked.early);
        let unacked = unacked.map(|unacked| &unacked.settings).chain(&self.held);
        let sizes = unacked.filter_map(|settings| settings.initial_window_size);
        sizes.chain([self.client_initial]).min().unwrap_or(0)
    }

    /// The longest header list that the client takes, where it has said so.
    pub(super) fn max_header_list(&self) -> Option<u32> {
        self.max_header_list
    }

    /// The client was sent settings.
    ///
    /// # Errors
    /// When it has not acknowledged too many.
    pub(super) fn client_told(&mut self, whose: Whose, settings: Settings) -> Result<(), u32> {
        if self.unacked_original.len() >= MAX_UNACKED {
            return Err(code::ENHANCE_YOUR_CALM);
        }
        // A client may make use of it before it says so.
        self.max_frame = self.max_frame.max(settings.max_frame_size.map_or(0, |size| size as usize));
        self.unacked_original.push_back((whose, settings));
        Ok(())
    }

    /// The client has acknowledged settings: whose they were, and by how much its windows for sending have changed.
    pub(super) fn client_acknowledged(&mut self) -> Option<(Whose, i64)> {
        let (whose, settings) = self.unacked_original.pop_front()?;
        self.max_streams = settings.max_concurrent_streams.unwrap_or(self.max_streams);
        if let Some((last, least)) = settings.header_table_size {
            let most = |size: u32| size.min(DEFAULT_TABLE) as usize;
            self.original_table = Some(merge(self.original_table, (most(least), most(last))));
        }
        let initial = settings.initial_window_size.map_or(self.initial, i64::from);
        let more = initial - self.initial;
        self.initial = initial;
        Some((whose, more))
    }

    /// The window that the client has for sending on a new stream.
    pub(super) fn initial(&self) -> i64 {
        self.initial
    }

    /// By how much the client will raise it on its own, once it has seen what the original has announced.
    pub(super) fn coming(&self) -> i64 {
        let sizes = self.unacked_original.iter().filter_map(|(_, settings)| settings.initial_window_size);
        (sizes.max().map_or(0, i64::from) - self.initial).max(0)
    }

    /// Streams that the client may have open.
    pub(super) fn max_streams(&self) -> usize {
        self.max_streams as usize
    }

    /// The largest frame that the client may send.
    pub(super) fn max_frame(&self) -> usize {
        self.max_frame
    }

    /// Writes what the original is to be told of its table at the beginning of a block.
    pub(super) fn put_original_table(&mut self, block: &mut Vec<u8>) {
        put_table(block, self.original_table.take());
    }

    /// Writes what the client is to be told of its table at the beginning of a block; whether there was anything.
    pub(super) fn put_client_table(&mut self, block: &mut Vec<u8>) -> bool {
        let update = self.client_table.take();
        put_table(block, update);
        update.is_some()
    }

    /// A block of the client's own passes to the original: it says itself what there is to be said.
    pub(super) fn client_block_passes(&mut self) {
        self.original_table = None;
    }

    /// A block of the original's own passes to the client.
    pub(super) fn original_block_passes(&mut self) {
        self.client_table = None;
    }
}

/// One change of a table after another.
fn merge(earlier: Option<TableUpdate>, later: TableUpdate) -> TableUpdate {
    earlier.map_or(later, |(least, _)| (least.min(later.0), later.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(size: u32) -> Settings {
        Settings { initial_window_size: Some(size), ..Settings::default() }
    }

    fn table(size: u32) -> Settings {
        Settings { header_table_size: Some((size, size)), ..Settings::default() }
    }

    #[test]
    fn a_larger_window_counts_from_its_acknowledgement_and_a_smaller_one_at_once() {
        let mut agreement = Agreement::default();
        for (size, certain) in [(100_000, 65_535), (50_000, 50_000)] {
            agreement.client_announced(window(size), 0, false).unwrap();
            assert_eq!(agreement.certain_initial(), certain);
        }
        // The first is larger than what was before, so nobody has to be waited for.
        assert_eq!(agreement.original_acknowledged(true, true), Acknowledged::Now(window(100_000)));
        assert!(agreement.client_counts(&window(100_000)));
        assert_eq!(agreement.certain_initial(), 50_000);
        assert_eq!(agreement.original_acknowledged(true, false), Acknowledged::Later);
        assert_eq!(agreement.certain_initial(), 50_000);
        assert_eq!(agreement.take_held(), Some(window(50_000)));
        assert_eq!(agreement.original_acknowledged(false, false), Acknowledged::Unasked);
    }

    #[test]
    fn an_acknowledgement_does_not_overtake_one_that_is_held_unless_it_is_of_a_table() {
        let mut agreement = Agreement::default();
        for settings in [window(1), window(2), table(7), table(9)] {
            agreement.client_announced(settings, 0, false).unwrap();
        }
        assert_eq!(agreement.original_acknowledged(true, false), Acknowledged::Later);
        assert_eq!(agreement.original_acknowledged(false, false), Acknowledged::Later);
        assert_eq!(agreement.original_acknowledged(true, true), Acknowledged::InOrder(table(7)));
        assert_eq!(agreement.original_acknowledged(true, false), Acknowledged::Now(table(9)));
        assert!(agreement.holds());
    }

    #[test]
    fn what_the_original_announces_is_coming_until_the_client_has_it() {
        let mut agreement = Agreement::default();
        agreement.client_told(Whose::Ours, Settings::default()).unwrap();
        agreement.client_told(Whose::Theirs, window(70_000)).unwrap();
        assert_eq!((agreement.initial(), agreement.coming()), (65_535, 4_465));
        assert_eq!(agreement.client_acknowledged(), Some((Whose::Ours, 0)));
        assert_eq!(agreement.client_acknowledged(), Some((Whose::Theirs, 4_465)));
        assert_eq!((agreement.initial(), agreement.coming()), (70_000, 0));
        assert_eq!(agreement.client_acknowledged(), None);
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let mut agreement = Agreement::default();
        for _ in 0..MAX_UNACKED - 5 {
            agreement.client_announced(window(9), 5, false).unwrap();
            agreement.client_told(Whose::Theirs, window(9)).unwrap();
        }
        assert_eq!(agreement.client_announced(window(9), 5, false), Err(code::ENHANCE_YOUR_CALM));
        assert_eq!(agreement.client_announced(window(9), 4, false), Ok(()));
    }

    #[test]
    fn of_changes_of_a_table_the_least_and_the_last_are_told() {
        let mut agreement = Agreement::default();
        for size in [4000, 0, 3000] {
            agreement.client_counts(&table(size));
        }
        let mut block = Vec::new();
        assert!(agreement.put_client_table(&mut block));
        assert_eq!(block, [0x20, 0x3f, 0x99, 0x17]);
        assert!(!agreement.put_client_table(&mut block));
    }
}
