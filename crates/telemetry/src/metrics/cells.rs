//! Counters and gauges.
//!
//! Hot path: a counter is a row of cells, one for each *lane*; a thread always adds to the lane
//! it was given at its first use, so threads up to [`LANES`] do not contend for a cache line.
//! Reading sums the lanes and may miss additions that run at the same moment, never more.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

/// Number of lanes. More threads share lanes, which costs time and not correctness.
const LANES: usize = 16;

static NEXT_LANE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static LANE: Cell<usize> = Cell::new(NEXT_LANE.fetch_add(1, Ordering::Relaxed) % LANES);
}

/// Rows of numbers that only grow, each spread over the lanes.
#[derive(Debug)]
pub(super) struct Cells {
    lanes: Box<[Box<[AtomicU64]>]>,
    width: usize,
}

impl Cells {
    pub(super) fn new(width: usize) -> Self {
        let lane = || (0..width).map(|_| AtomicU64::new(0)).collect();
        Self {
            lanes: (0..LANES).map(|_| lane()).collect(),
            width,
        }
    }

    /// Adds to a cell of this thread's lane. A cell outside the width is not there to be counted,
    /// and nothing happens: a number missing from a metric is no reason to end a request.
    pub(super) fn add(&self, cell: usize, count: u64) {
        debug_assert!(cell < self.width, "cell {cell} of {}", self.width);
        let lane = LANE.with(Cell::get);
        if let Some(cell) = self.lanes.get(lane).and_then(|lane| lane.get(cell)) {
            cell.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self, cell: usize) -> u64 {
        let lanes = self.lanes.iter().filter_map(|lane| lane.get(cell));
        lanes.fold(0_u64, |sum, cell| {
            sum.wrapping_add(cell.load(Ordering::Relaxed))
        })
    }
}

/// A family of counters, addressed by row.
#[derive(Clone, Debug)]
pub struct Counters {
    cells: Arc<Cells>,
}

impl Counters {
    pub(super) fn new(rows: usize) -> Self {
        Self {
            cells: Arc::new(Cells::new(rows)),
        }
    }

    /// Adds one to a row.
    pub fn increment(&self, row: usize) {
        self.add(row, 1);
    }

    /// Adds `count` to a row.
    pub fn add(&self, row: usize, count: u64) {
        self.cells.add(row, count);
    }

    /// The row's count so far; 0 for a row that does not exist.
    #[must_use]
    pub fn get(&self, row: usize) -> u64 {
        self.cells.get(row)
    }

    /// One row by itself.
    #[must_use]
    pub fn at(&self, row: usize) -> Counter {
        Counter {
            counters: self.clone(),
            row,
        }
    }
}

/// One counter.
#[derive(Clone, Debug)]
pub struct Counter {
    counters: Counters,
    row: usize,
}

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.counters.increment(self.row);
    }

    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.counters.add(self.row, count);
    }

    /// The count so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.counters.get(self.row)
    }
}

/// A family of gauges, addressed by row. A gauge is set as a whole, so it is one cell.
#[derive(Clone, Debug)]
pub struct Gauges {
    cells: Arc<[AtomicI64]>,
}

impl Gauges {
    pub(super) fn new(rows: usize) -> Self {
        Self {
            cells: (0..rows).map(|_| AtomicI64::new(0)).collect(),
        }
    }

    /// Sets a row.
    pub fn set(&self, row: usize, value: i64) {
        debug_assert!(row < self.cells.len(), "row {row} of {}", self.cells.len());
        if let Some(cell) = self.cells.get(row) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// Adds to a row; `delta` may be negative.
    pub fn add(&self, row: usize, delta: i64) {
        debug_assert!(row < self.cells.len(), "row {row} of {}", self.cells.len());
        if let Some(cell) = self.cells.get(row) {
            cell.fetch_add(delta, Ordering::Relaxed);
        }
    }

    /// The row's value; 0 for a row that does not exist.
    #[must_use]
    pub fn get(&self, row: usize) -> i64 {
        let cell = self.cells.get(row);
        cell.map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    /// One row by itself.
    #[must_use]
    pub fn at(&self, row: usize) -> Gauge {
        Gauge {
            gauges: self.clone(),
            row,
        }
    }
}

/// One gauge.
#[derive(Clone, Debug)]
pub struct Gauge {
    gauges: Gauges,
    row: usize,
}

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: i64) {
        self.gauges.set(self.row, value);
    }

    /// Adds to it; `delta` may be negative.
    pub fn add(&self, delta: i64) {
        self.gauges.add(self.row, delta);
    }

    /// Its value.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.gauges.get(self.row)
    }

    /// Counts one more until the guard is dropped: for connections, requests in flight and the like.
    #[must_use]
    pub fn enter(&self) -> Entered {
        self.add(1);
        Entered {
            gauge: self.clone(),
        }
    }
}

/// Takes one off its gauge when dropped.
#[derive(Debug)]
pub struct Entered {
    gauge: Gauge,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.gauge.add(-1);
    }
}
