//! Little-endian integers in and out of byte slices, without a way to panic.

/// Takes fields off the front of a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }
}

/// Length of a slice as it is written into files.
///
/// # Panics
/// If the slice is longer than 4 GiB, which every limit excludes.
pub(crate) fn length_u32(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("limits keep every payload below 4 GiB")
}

/// Widens a length or offset in memory; exact on every 64-bit target.
pub(crate) const fn widen(value: usize) -> u64 {
    value as u64
}

/// Narrows an offset within a mapped or loaded file.
///
/// # Panics
/// If the value does not fit the address space; files are bounded far below it.
pub(crate) fn narrow(value: u64) -> usize {
    usize::try_from(value).expect("offsets in segments fit the address space")
}
