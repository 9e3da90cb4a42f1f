//! Everything nondeterministic: clock, disk, randomness. Real on a machine, simulated in a test.
//!
//! This is the only room that reads a clock, opens a file or draws entropy. Everyone else is handed
//! a [`Clock`], a [`Disk`] and an [`Rng`], so that a crash, a lost write, a full disk or a clock
//! step can be made to happen from a seed.

pub mod clock;
pub mod disk;
mod real;
pub mod rng;
mod sim_clock;
mod sim_disk;
mod tasks;
pub mod world;

pub use clock::{Clock, Instant};
pub use disk::{Disk, File, LockGuard, OpenMode};
pub use real::{
    RealClock, RealDisk, ThreadMeter, ThreadTimes, boot_id, entropy_u64, lower_priority,
    thread_cpu_time, wall_nanos,
};
pub use rng::{Rng, SeededRng};
pub use sim_clock::SimClock;
pub use sim_disk::{CrashLoss, SimDisk};
pub use tasks::{Elapsed, Sleep, TaskError, Timeout, blocking, pause, sleep, stall, timeout};
pub use world::{World, boot_now, draw_u64, enter_world, world};
