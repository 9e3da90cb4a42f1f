//! Everything nondeterministic: clock, disk, randomness; real and simulated.
